"""Selection methods by name. A new one needs a file in this folder and a line in SELECTORS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from megacov.errors import ConfigError
from megacov.selection.bapo import balanced_range, beyond_range
from megacov.selection.clip_cov import band, select_clip_cov
from megacov.selection.high_entropy import select_high_entropy
from megacov.selection.kl_cov import select_kl_cov
from megacov.selection.lp_reg import select_lp_reg
from megacov.selection.m2po import moving_away, select_m2po, squared_log_ratios
from megacov.selection.steer import entropy_changes, steer_weights

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionInputs:
    """The tokens of this rank in one selection scope, with everything that a method may read.

    cov: [t] float32, from megacov.ops.covariance.
    kept_mask: [t] bool.
    token_ids: [t] int64, unique over the group.
    seed: seed of the run.
    update: number of the optimizer step.
    group: ranks that hold the other tokens of the scope; None if this rank has them all.
    entropy: [t] float32 nats, under the old policy, or None if no method needs it.
    eligible_mask: [t] bool, tokens with a gradient by the loss's own clip; None for all. Clip-Cov and STEER read it.
    log_probs: [t] float32, under the policy that the selection judges by; None if no method needs it.
    old_log_probs: [t] float32, that ratios are to, likewise.
    rollout_log_probs: [t] float32, the server's, likewise.
    policy_advantages: [t] float32, as the policy loss reads them, likewise.
    current_entropy: [t] float32 nats, under the policy of log_probs, likewise.
    is_global: whether all ranks and micro-batches of an optimizer step compete, not those of one micro-batch alone.
    """

    cov: Tensor
    kept_mask: Tensor
    token_ids: Tensor
    seed: int
    update: int
    group: ProcessGroup | None
    entropy: Tensor | None = None
    eligible_mask: Tensor | None = None
    log_probs: Tensor | None = None
    old_log_probs: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    policy_advantages: Tensor | None = None
    current_entropy: Tensor | None = None
    is_global: bool = True


class Choice(NamedTuple):
    """What a method has decided about the tokens of this rank.

    mask: [t] bool, the selected tokens; for a method that weighs, those of a weight below 1.
    weights: [t] float32, or None for a method that does not weigh.
    found: what the method says of the whole scope, by the names of `Selector.finds`; [] float64, equal on all ranks.
    """

    mask: Tensor
    weights: Tensor | None
    found: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Selector:
    """A selection method; call it with the inputs and its hyperparameters, which have the names of its config fields.

    select: fn(inputs, **hyperparameters) -> [t] bool; or [t] float32 weights of at most 1, of a method that weighs; and
        after it in a tuple what the method finds, in the order of `finds`.
    scores: fn(inputs) -> [t] float, by which tokens are ranked or become candidates.
    candidates: fn(inputs, **hyperparameters) -> [t] bool, the tokens that a random method draws from; None for a method
        that ranks.
    needs_entropy: whether it reads the entropy of the inputs.
    ranks: whether it takes the largest scores, so that threshold and margin describe it.
    skips_equal_scores: whether it selects nothing in a global scope where all scores are equal.
    needs_current_entropy: whether it reads the current entropy of the inputs.
    weighs: whether `select` returns weights.
    finds: meaning and unit of each value that describes the whole selection, by name; logged as `selection/<name>`.
    """

    select: Callable[..., Tensor | tuple[Tensor, ...]]
    scores: Callable[[SelectionInputs], Tensor]
    candidates: Callable[..., Tensor] | None = None
    needs_entropy: bool = False
    ranks: bool = True
    skips_equal_scores: bool = False
    needs_current_entropy: bool = False
    weighs: bool = False
    finds: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __call__(self, inputs: SelectionInputs, **hyperparameters: Any) -> Tensor:
        """[t] bool: the tokens of this rank that the method selects. Collectives: inputs.group: those of the method."""
        return self.choose(inputs, **hyperparameters).mask

    def choose(self, inputs: SelectionInputs, **hyperparameters: Any) -> Choice:
        """The tokens of this rank that the method selects, what it lets each count, and what it has found.

        Collectives: inputs.group: those of the method.

        Args:
            inputs: the tokens.
            **hyperparameters: of the method, named as its config fields.

        Returns:
            The choice.
        """
        chosen = self.select(inputs, **hyperparameters)
        tokens, *values = chosen if isinstance(chosen, tuple) else (chosen,)
        found = dict(zip(self.finds, values, strict=True))
        return Choice(tokens < 1, tokens, found) if self.weighs else Choice(tokens, None, found)


def get_selector(name: str) -> Selector:
    """The selection method with this name.

    Args:
        name: "kl_cov" (ratio, min_cov), "clip_cov" (ratio, lower, upper), "high_entropy" (ratio), "m2po" (threshold),
            "bapo" (positive_share, lower_start, lower_end, upper_start, upper_end, step), "steer" (min_weight,
            min_scale) or "lp_reg" (negative_ratio, positive_ratio).

    Returns:
        The method; call it with SelectionInputs and those keyword hyperparameters.

    Raises:
        ConfigError: if there is no such method.
    """
    if name not in SELECTORS:
        raise ConfigError(f"selection '{name}' does not exist; choose one of {', '.join(sorted(SELECTORS))}")
    return SELECTORS[name]


def _kl_cov(inputs: SelectionInputs, *, ratio: float, min_cov: float | None = None) -> Tensor:
    return select_kl_cov(
        inputs.cov,
        inputs.kept_mask,
        inputs.token_ids,
        ratio=ratio,
        group=inputs.group,
        min_cov=min_cov,
        selects_among_equals=not inputs.is_global,
    )


def _clip_cov(inputs: SelectionInputs, *, ratio: float, lower: float, upper: float) -> Tensor:
    return select_clip_cov(
        inputs.cov,
        _eligible(inputs),
        inputs.kept_mask,
        inputs.token_ids,
        ratio=ratio,
        lower=lower,
        upper=upper,
        seed=inputs.seed,
        update=inputs.update,
        group=inputs.group,
    )


def _eligible(inputs: SelectionInputs) -> Tensor:
    return inputs.kept_mask if inputs.eligible_mask is None else inputs.eligible_mask


def _clip_cov_band(inputs: SelectionInputs, *, ratio: float, lower: float, upper: float) -> Tensor:
    return band(inputs.cov, _eligible(inputs), inputs.kept_mask, lower=lower, upper=upper)


def _high_entropy(inputs: SelectionInputs, *, ratio: float) -> Tensor:
    entropy = _entropy(inputs)
    return select_high_entropy(entropy, inputs.kept_mask, inputs.token_ids, ratio=ratio, group=inputs.group)


def _m2po(inputs: SelectionInputs, *, threshold: float) -> tuple[Tensor, ...]:
    log_probs, rollout = _known(inputs.log_probs), _known(inputs.rollout_log_probs)
    trusted = moving_away(log_probs, rollout, _known(inputs.policy_advantages), inputs.kept_mask)
    return select_m2po(squared_log_ratios(log_probs, rollout), trusted, threshold=threshold, group=inputs.group)


def _squared_log_ratios(inputs: SelectionInputs) -> Tensor:
    return squared_log_ratios(_known(inputs.log_probs), _known(inputs.rollout_log_probs))


def _bapo(
    inputs: SelectionInputs,
    *,
    positive_share: float,
    lower_start: float,
    lower_end: float,
    upper_start: float,
    upper_end: float,
    step: float,
) -> tuple[Tensor, ...]:
    tokens = _log_ratios(inputs), _known(inputs.policy_advantages), inputs.kept_mask
    lower, upper, share = balanced_range(
        *tokens,
        positive_share=positive_share,
        lower=(lower_start, lower_end),
        upper=(upper_start, upper_end),
        step=step,
        group=inputs.group,
    )
    return beyond_range(*tokens, lower, upper), lower, upper, share


def _log_ratios(inputs: SelectionInputs) -> Tensor:
    return _known(inputs.log_probs) - _known(inputs.old_log_probs)


def _steer(inputs: SelectionInputs, *, min_weight: float, min_scale: float) -> tuple[Tensor, ...]:
    return steer_weights(
        _entropy_changes(inputs), inputs.kept_mask, min_weight=min_weight, min_scale=min_scale, group=inputs.group
    )


def _entropy_changes(inputs: SelectionInputs) -> Tensor:
    return entropy_changes(
        _known(inputs.log_probs),
        _known(inputs.old_log_probs),
        _known(inputs.policy_advantages),
        _known(inputs.current_entropy),
        _eligible(inputs),
    )


def _lp_reg(inputs: SelectionInputs, *, negative_ratio: float, positive_ratio: float) -> Tensor:
    return select_lp_reg(
        _known(inputs.log_probs),
        _known(inputs.policy_advantages),
        inputs.kept_mask,
        inputs.token_ids,
        negative_ratio=negative_ratio,
        positive_ratio=positive_ratio,
        group=inputs.group,
    )


def _known(values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError("this method reads log-probs, advantages or entropies that SelectionInputs does not have")
    return values


def _cov(inputs: SelectionInputs) -> Tensor:
    return inputs.cov


def _entropy(inputs: SelectionInputs) -> Tensor:
    if inputs.entropy is None:
        raise ValueError("high_entropy selects by entropy, but SelectionInputs.entropy is None")
    return inputs.entropy


_M2PO_FINDS = {
    "m2po_second_moment": (
        "Mean of M2PO's squared log-ratios over the tokens that move away from the server, before any is left out.",
        "nats^2",
    ),
    "m2po_limit": ("Smallest log-ratio, in magnitude, that M2PO leaves out. Absent where it leaves out none.", "nats"),
}
_BAPO_FINDS = {
    "bapo_lower": ("Lower bound of the ratio that BAPO has found.", "ratio"),
    "bapo_upper": ("Upper bound of the ratio that BAPO has found.", "ratio"),
    "bapo_positive_share": ("Share of the positive tokens in the gradient within BAPO's bounds.", "share"),
}
_STEER_FINDS = {
    "steer_largest_change": (
        "Largest change of entropy by a token's own gradient, but for the learning rate; STEER's scale.",
        "-",
    ),
}

SELECTORS = {
    "kl_cov": Selector(_kl_cov, _cov, skips_equal_scores=True),
    "clip_cov": Selector(_clip_cov, _cov, _clip_cov_band, ranks=False),
    "high_entropy": Selector(_high_entropy, _entropy, needs_entropy=True),
    "m2po": Selector(_m2po, _squared_log_ratios, ranks=False, finds=_M2PO_FINDS),
    "bapo": Selector(_bapo, _log_ratios, ranks=False, finds=_BAPO_FINDS),
    "steer": Selector(
        _steer, _entropy_changes, ranks=False, needs_current_entropy=True, weighs=True, finds=_STEER_FINDS
    ),
    "lp_reg": Selector(_lp_reg, lambda inputs: -_known(inputs.log_probs), ranks=False),
}
"""All methods by name."""
