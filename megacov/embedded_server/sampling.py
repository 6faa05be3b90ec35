"""Draw the next tokens of all running sequences at once.

Shape legend: b running sequences, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GREEDY_BELOW = 1e-6  # below this temperature sampling is greedy and log-probs are unscaled, as in SGLang


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request's tokens are drawn and its completions ended; names and defaults are SGLang's."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    sampling_seed: int | None = None

    @property
    def scale(self) -> float:
        """Divisor of the logits."""
        return self.temperature if self.temperature >= _GREEDY_BELOW else 1.0

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken and nothing is drawn."""
        return self.temperature < _GREEDY_BELOW or self.top_k == 1


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling parameters of the running sequences, as tensors for `draw`.

    temperature: [b, 1] float32, 1 for temperature 0.
    greedy: [b] bool.
    top_p, min_p: [b, 1] float64. top_k: [b, 1] int64, v or more where off.
    filtered: [b] bool, rows with top-p, top-k or min-p; where there are none, `draw` sorts nothing.
    """

    temperature: Tensor
    greedy: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor
    filtered: Tensor

    @classmethod
    def of(cls, rows: Sequence[SamplingParams]) -> SamplingPlan:
        """Put the parameters of the rows into tensors, in the same order."""

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).unsqueeze(1)

        return cls(
            temperature=column([row.scale for row in rows], torch.float32),
            greedy=torch.tensor([row.is_greedy for row in rows]),
            top_p=column([row.top_p for row in rows], torch.float64),
            top_k=column([row.top_k if row.top_k > 0 else torch.iinfo(torch.int64).max for row in rows], torch.int64),
            min_p=column([row.min_p for row in rows], torch.float64),
            filtered=torch.tensor([row.top_p < 1.0 or row.top_k > 1 or row.min_p > 0.0 for row in rows]),
        )

    def take(self, rows: Tensor) -> SamplingPlan:
        """The plan of the rows with these indices."""
        return SamplingPlan(
            temperature=self.temperature[rows],
            greedy=self.greedy[rows],
            top_p=self.top_p[rows],
            top_k=self.top_k[rows],
            min_p=self.min_p[rows],
            filtered=self.filtered[rows],
        )


def draw(logits: Tensor, plan: SamplingPlan, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for every row, by inverting its cumulative distribution at one uniform number.

    One number a row, rather than one for each row and token, makes a row's draw depend on its own logits alone.

    Args:
        logits: [b, v], any float dtype; read only, computed in float32.
        plan: sampling parameters of the rows.
        uniforms: [b] float64 in [0, 1); ignored in greedy rows.

    Returns:
        tokens [b] int64, and log_probs [b] float32 = log_softmax(logits / T) at the token, before top-p, top-k and
        min-p. A log_prob of NaN marks a row whose logits are not finite; its token is meaningless.
    """
    scaled = logits.float() / plan.temperature
    log_total = scaled.logsumexp(-1, keepdim=True)
    tokens = scaled.argmax(-1)
    if not bool(plan.greedy.all()):
        probs = (scaled - log_total).double().exp()
        if bool(plan.filtered.any()):
            probs = _filtered(probs, plan)
        cumulative = probs.cumsum(-1)
        total = cumulative[:, -1:]
        # Below the total even when uniform * total rounds up to it, so that a token of probability 0 is never drawn.
        threshold = torch.minimum(uniforms.unsqueeze(1) * total, total.nextafter(torch.zeros_like(total)))
        drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
        tokens = torch.where(plan.greedy, tokens, drawn.clamp_max(logits.shape[-1] - 1))
    log_probs = (scaled.gather(-1, tokens.unsqueeze(1)) - log_total).squeeze(1)
    return tokens, torch.where(log_total.squeeze(1).isfinite(), log_probs, torch.nan)


def _filtered(probs: Tensor, plan: SamplingPlan) -> Tensor:
    """Zero tokens that top-k, top-p or min-p exclude; all three use the unfiltered probabilities, as in SGLang."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(probs.shape[-1]).unsqueeze(0)
    excluded = rank >= plan.top_k
    excluded |= (plan.top_p < 1.0) & (before > plan.top_p)
    excluded |= ordered < ordered[:, :1] * plan.min_p
    return torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(excluded, 0.0))
