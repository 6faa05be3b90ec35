"""Masking, weighting and summing for every policy loss, so that a loss itself is only its equation.

t: response tokens of one micro-batch, laid flat. d = log_probs - old_log_probs, the log of the importance ratio.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.kl import estimate_kl
from megacov.types import LossBatch, LossOutput


@dataclass(frozen=True)
class Metric:
    """A quantity per token, whose mean over kept tokens is logged.

    meaning: one sentence.
    unit: of the value; "share" is a fraction in [0, 1], "-" a number without a unit.
    """

    meaning: str
    unit: str


@dataclass(frozen=True)
class TokenLosses:
    """The result of a loss's equation: a value per token, nothing masked, weighted or summed yet.

    losses: [t] float, carries the gradient.
    metrics: [t] float or bool each, detached; their means over kept tokens are logged as `policy/<key>`.
    """

    losses: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


SHARED_METRICS = {
    "k1": Metric("Mean of -d: unbiased for KL(old || new).", "nats"),
    "k1_abs": Metric("Mean of |d|.", "nats"),
    "k3": Metric("Mean of exp(d) - 1 - d: unbiased for KL(old || new), never below 0.", "nats"),
    "ratio": Metric("Mean of the importance ratio exp(d); near 1.", "-"),
}
"""Metrics that every loss has; their expectations hold for samples drawn from the old policy."""


# Further tags `policy/<name>` of every run.
_OTHER_TAGS = ("loss", "ref_kl", "kept_fraction", "grad_norm", "lr")


def _is_metric(name: object, metric: object) -> bool:
    return isinstance(metric, Metric) and isinstance(name, str) and re.fullmatch("[a-z0-9_]+", name) is not None


@dataclass(frozen=True)
class Loss:
    """A policy loss; call it with a batch and its hyperparameters. `policy_loss` makes one.

    name: as in `algorithm.loss.name`.
    token_losses: the equation, fn(batch, **hyperparameters); it may trust that masked tokens hold 0.
    metrics: of the equation, by name; one that it yields and does not declare is an error.
    needs_selection: True where `LossBatch.selected` must be given.
    needs_sequence_sums: True where `LossBatch.sequence_log_ratio` and `sequence_tokens` must be given.
    needs_old_entropy: True where `LossBatch.entropy` and `old_entropy` must be given.
    needs_filtered_old: True where `LossBatch.filtered_old_log_probs` must be given, filtered by the hyperparameter
        `min_p`, which the loss must have.
    clipped_tokens: fn(batch, **hyperparameters) -> [t] bool, tokens that a clip leaves without gradient; None if none.
    has_own_gradient: True where the gradient is not that of the value, as where a factor is detached.
    is_anchored_at_rollout: True where `LossBatch.old_log_probs` are the rollout server's instead of the trainer's own,
        so that the ratio also corrects the mismatch between the two.
    is_policy_gradient_at_old: at d = 0 the gradient of each token that is not selected is that of -A log_prob.
    """

    name: str
    token_losses: Callable[..., TokenLosses]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    needs_selection: bool = False
    needs_sequence_sums: bool = False
    needs_old_entropy: bool = False
    needs_filtered_old: bool = False
    clipped_tokens: Callable[..., Tensor] | None = None
    has_own_gradient: bool = False
    is_anchored_at_rollout: bool = False
    is_policy_gradient_at_old: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be given: a selection asks which tokens are clipped before an update has any sums."""
        if self.needs_selection and self.needs_sequence_sums and self.clipped_tokens is not None:
            raise ConfigError(
                f"Loss {self.name} declares needs_selection, needs_sequence_sums and clipped_tokens: clipped tokens are"
                " asked for before a selection, where no sums are known yet; leave one of the three out."
            )
        if self.needs_filtered_old and "min_p" not in signature(self.token_losses).parameters:
            raise ConfigError(
                f"Loss {self.name} declares needs_filtered_old and has no hyperparameter min_p, by which the old "
                "distribution is filtered: add min_p: float = 0.02."
            )
        taken = sorted(name for name in self.metrics if name in SHARED_METRICS or name in _OTHER_TAGS)
        if taken:
            raise ConfigError(f"Loss {self.name} declares {', '.join(taken)}, which every run has: rename it.")
        wrong = [str(name) for name, metric in self.metrics.items() if not _is_metric(name, metric)]
        if wrong:
            raise ConfigError(
                f"Loss {self.name} declares {', '.join(wrong)}: give each metric a name of a-z, 0-9 and _, and a "
                "Metric(meaning, unit)."
            )

    def __call__(self, batch: LossBatch, **hyperparameters: Any) -> LossOutput:
        """The weighted sum of the token losses, and the sums of the token metrics over kept tokens.

        loss = sum_i token_weights_i * token_losses_i
        Besides the loss's own metrics there are those of `SHARED_METRICS`.

        Args:
            batch: [t] tensors of one micro-batch.
            **hyperparameters: of this loss, named as its config fields.

        Returns:
            The scalar loss in the dtype of log_probs, and metrics as float64 scalars.

        Gradient: to batch.log_probs; exactly 0 at masked tokens, whatever they hold.

        Raises:
            ConfigError: the loss acts on selected tokens but none were selected, a hyperparameter is out of range, or
                the equation yields a metric that is not declared.
        """
        if self.needs_selection and batch.selected is None:
            raise ConfigError(f"Loss {self.name} acts on selected tokens: set algorithm.selection.name to a selection.")
        assert not self.needs_sequence_sums or batch.sequence_tokens is not None, "the trainer gives the sums"
        batch = zero_masked_tokens(batch)
        tokens = self.token_losses(batch, **hyperparameters)
        undeclared = sorted(tokens.metrics.keys() - self.metrics.keys())
        if undeclared:
            raise ConfigError(
                f"Loss {self.name} yields {', '.join(undeclared)} and declares "
                f"{', '.join(self.metrics) or 'no metrics'}: declare each metric in @policy_loss(metrics=...)."
            )
        metrics = {**_ratio_metrics(batch), **tokens.metrics}
        return LossOutput(
            loss=(batch.token_weights * tokens.losses).sum(),
            metrics={key: sum_over_kept_tokens(values, batch.kept_mask) for key, values in metrics.items()},
        )

    @torch.no_grad()
    def clipped(self, batch: LossBatch, **hyperparameters: Any) -> Tensor:
        """Kept tokens that the loss's own clip leaves without gradient, so that Clip-Cov need not pick them.

        Args:
            batch: [t] tensors; log_probs, old_log_probs, advantages and kept_mask are read.
            **hyperparameters: of this loss, the same as in the call.

        Returns:
            [t] bool; all False for a loss that does not clip.

        Gradient: none.
        """
        if self.clipped_tokens is None:
            return torch.zeros_like(batch.kept_mask)
        return self.clipped_tokens(zero_masked_tokens(batch), **hyperparameters) & batch.kept_mask


def policy_loss(
    *,
    metrics: Mapping[str, Metric] | None = None,
    needs_selection: bool = False,
    needs_sequence_sums: bool = False,
    needs_old_entropy: bool = False,
    needs_filtered_old: bool = False,
    clipped_tokens: Callable[..., Tensor] | None = None,
    has_own_gradient: bool = False,
    is_anchored_at_rollout: bool = False,
    is_policy_gradient_at_old: bool = True,
) -> Callable[[Callable[..., TokenLosses]], Loss]:
    """Make a loss of an equation: a decorator of fn(batch, *, hyperparameters) -> TokenLosses.

    The loss has the function's name. Its hyperparameters are the keyword-only parameters, annotated, with defaults.

    Args:
        metrics: as in `Loss`; none by default.
        needs_selection: as in `Loss`.
        needs_sequence_sums: as in `Loss`.
        needs_old_entropy: as in `Loss`.
        needs_filtered_old: as in `Loss`.
        clipped_tokens: as in `Loss`.
        has_own_gradient: as in `Loss`.
        is_anchored_at_rollout: as in `Loss`.
        is_policy_gradient_at_old: as in `Loss`.

    Returns:
        The decorator.

    Raises:
        ConfigError: the declarations contradict each other.
    """

    def declare(token_losses: Callable[..., TokenLosses]) -> Loss:
        return Loss(
            name=token_losses.__name__,
            token_losses=token_losses,
            metrics=metrics or {},
            needs_selection=needs_selection,
            needs_sequence_sums=needs_sequence_sums,
            needs_old_entropy=needs_old_entropy,
            needs_filtered_old=needs_filtered_old,
            clipped_tokens=clipped_tokens,
            has_own_gradient=has_own_gradient,
            is_anchored_at_rollout=is_anchored_at_rollout,
            is_policy_gradient_at_old=is_policy_gradient_at_old,
        )

    return declare


def zero_masked_tokens(batch: LossBatch) -> LossBatch:
    """The batch with 0 at every token outside `kept_mask`, and with 1 there in denominators and factors.

    It must happen before the first exp: a NaN that is masked after exp still turns the gradient into 0 * NaN = NaN.

    Args:
        batch: [t] tensors; read only.

    Returns:
        A batch whose kept tokens are unchanged. What a loss does not read is handed on as it is.
    """

    def keep(values: Tensor, other: float = 0.0) -> Tensor:
        return torch.where(batch.kept_mask, values, other)

    log_ratio, num_tokens, old_entropy = batch.sequence_log_ratio, batch.sequence_tokens, batch.old_entropy
    weights, filtered = batch.selection_weights, batch.filtered_old_log_probs
    return replace(
        batch,
        log_probs=keep(batch.log_probs),
        old_log_probs=keep(batch.old_log_probs),
        advantages=keep(batch.advantages),
        token_weights=keep(batch.token_weights),
        sequence_log_ratio=None if log_ratio is None else keep(log_ratio),
        sequence_tokens=None if num_tokens is None else keep(num_tokens, 1.0),
        old_entropy=None if old_entropy is None else keep(old_entropy),
        selection_weights=None if weights is None else keep(weights, 1.0),
        filtered_old_log_probs=None if filtered is None else keep(filtered),
    )


def sum_over_kept_tokens(values: Tensor, kept_mask: Tensor) -> Tensor:
    """Sum of values at kept tokens, for logging.

    Args:
        values: [t] float or bool; read only.
        kept_mask: [t] bool.

    Returns:
        Scalar float64.

    Gradient: none.
    """
    return torch.where(kept_mask, values.detach().double(), 0.0).sum()


@torch.no_grad()
def _ratio_metrics(batch: LossBatch) -> dict[str, Tensor]:
    """How far the policy has moved from the one that the old log-probs belong to, per token."""
    d = batch.log_probs - batch.old_log_probs
    return {"k1": -d, "k1_abs": d.abs(), "k3": estimate_kl(d, estimator="k3"), "ratio": d.exp()}
