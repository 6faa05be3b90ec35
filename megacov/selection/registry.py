"""Selection methods by name. A new one is a file beside this one and a line in _SELECTORS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megacov.errors import ConfigError
from megacov.selection.clip_cov import select_clip_cov
from megacov.selection.high_entropy import select_high_entropy
from megacov.selection.kl_cov import select_kl_cov

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionInputs:
    """The tokens of this rank in one selection scope, and what any method may look at.

    cov: [t] float32, from megacov.ops.covariance.
    loss_mask: [t] bool.
    token_ids: [t] int64, unique over the group.
    seed: the run's seed.
    update: counts optimizer steps.
    group: ranks that hold the other tokens of the scope; None if this rank has them all.
    entropy: [t] float32 nats, or None where no method asks for it.
    eligible_mask: [t] bool, tokens that may be acted on; None for all. Only Clip-Cov looks at it.
    """

    cov: Tensor
    loss_mask: Tensor
    token_ids: Tensor
    seed: int
    update: int
    group: ProcessGroup | None
    entropy: Tensor | None = None
    eligible_mask: Tensor | None = None


Selector = Callable[..., "Tensor"]
"""selector(inputs, **hyperparameters) -> [t] bool; the hyperparameters have the names of the config's fields."""


def get_selector(name: str) -> Selector:
    """The selection method with this name.

    Args:
        name: "kl_cov" (ratio), "clip_cov" (ratio, lower, upper) or "high_entropy" (ratio).

    Returns:
        A function of SelectionInputs and those keyword hyperparameters that marks tokens of this rank: [t] bool.

    Raises:
        ConfigError: if there is no such method.
    """
    if name not in _SELECTORS:
        raise ConfigError(f"selection '{name}' does not exist; choose one of {', '.join(sorted(_SELECTORS))}")
    return _SELECTORS[name]


def _kl_cov(inputs: SelectionInputs, *, ratio: float) -> Tensor:
    return select_kl_cov(inputs.cov, inputs.loss_mask, inputs.token_ids, ratio=ratio, group=inputs.group)


def _clip_cov(inputs: SelectionInputs, *, ratio: float, lower: float, upper: float) -> Tensor:
    eligible_mask = inputs.loss_mask if inputs.eligible_mask is None else inputs.eligible_mask
    return select_clip_cov(
        inputs.cov,
        eligible_mask,
        inputs.loss_mask,
        inputs.token_ids,
        ratio=ratio,
        lower=lower,
        upper=upper,
        seed=inputs.seed,
        update=inputs.update,
        group=inputs.group,
    )


def _high_entropy(inputs: SelectionInputs, *, ratio: float) -> Tensor:
    if inputs.entropy is None:
        raise ValueError("high_entropy selects by entropy, but SelectionInputs.entropy is None")
    return select_high_entropy(inputs.entropy, inputs.loss_mask, inputs.token_ids, ratio=ratio, group=inputs.group)


_SELECTORS: dict[str, Selector] = {"kl_cov": _kl_cov, "clip_cov": _clip_cov, "high_entropy": _high_entropy}
