"""Selection methods by name. A new one needs a file in this folder and a line in _SELECTORS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megacov.errors import ConfigError
from megacov.selection.clip_cov import band, select_clip_cov
from megacov.selection.high_entropy import select_high_entropy
from megacov.selection.kl_cov import select_kl_cov

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
    entropy: [t] float32 nats, or None if no method needs it.
    eligible_mask: [t] bool, tokens that Clip-Cov may select; None for all. Other methods ignore it.
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
    is_global: bool = True


@dataclass(frozen=True, slots=True)
class Selector:
    """A selection method; call it with the inputs and its hyperparameters, which have the names of its config fields.

    select: fn(inputs, **hyperparameters) -> [t] bool.
    scores: fn(inputs) -> [t] float, by which tokens are ranked or become candidates.
    candidates: fn(inputs, **hyperparameters) -> [t] bool, the tokens that a random method draws from; None for a method
        that ranks.
    skips_equal_scores: whether it selects nothing in a global scope where all scores are equal.
    """

    select: Callable[..., Tensor]
    scores: Callable[[SelectionInputs], Tensor]
    candidates: Callable[..., Tensor] | None = None
    skips_equal_scores: bool = False

    def __call__(self, inputs: SelectionInputs, **hyperparameters: Any) -> Tensor:
        """[t] bool: the tokens of this rank that the method selects. Collectives: inputs.group: those of the method."""
        return self.select(inputs, **hyperparameters)


def get_selector(name: str) -> Selector:
    """The selection method with this name.

    Args:
        name: "kl_cov" (ratio, min_cov), "clip_cov" (ratio, lower, upper) or "high_entropy" (ratio).

    Returns:
        The method; call it with SelectionInputs and those keyword hyperparameters.

    Raises:
        ConfigError: if there is no such method.
    """
    if name not in _SELECTORS:
        raise ConfigError(f"selection '{name}' does not exist; choose one of {', '.join(sorted(_SELECTORS))}")
    return _SELECTORS[name]


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


def _cov(inputs: SelectionInputs) -> Tensor:
    return inputs.cov


def _entropy(inputs: SelectionInputs) -> Tensor:
    if inputs.entropy is None:
        raise ValueError("high_entropy selects by entropy, but SelectionInputs.entropy is None")
    return inputs.entropy


_SELECTORS = {
    "kl_cov": Selector(_kl_cov, _cov, skips_equal_scores=True),
    "clip_cov": Selector(_clip_cov, _cov, _clip_cov_band),
    "high_entropy": Selector(_high_entropy, _entropy),
}
