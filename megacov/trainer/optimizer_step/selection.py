"""Which tokens the covariance method acts on, over the scope that the configuration names.

Runs on the last pipeline stage only: the other stages have no log-probs and need no mask.
Shape legend: t response tokens of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megacov.ops import covariance
from megacov.selection import SelectionInputs
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, join, join_if_known, split_like
from megacov.types import LossBatch


@dataclass(frozen=True)
class Selection:
    """The tokens selected on this rank, and those they were selected from; lists of [t] tensors, one a micro-batch.

    masks: bool, the selected tokens.
    scores: float, the values that rank the tokens, or that decide which may be drawn.
    candidates: bool, the tokens that competed or that were drawn from.
    log_probs: float32, that the covariance was taken of.
    entropies: float32 nats, under the same policy; empty where unknown.
    weights: float32, what a method that weighs lets each token count; empty for other methods.
    found: what the method says of its whole scope, as in `megacov.selection.Selector.finds`; no list.
    """

    masks: list[Tensor]
    scores: list[Tensor]
    candidates: list[Tensor]
    log_probs: list[Tensor]
    entropies: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    found: dict[str, Tensor] = field(default_factory=dict)

    def slice(self, start: int, stop: int) -> Selection:
        """The selection in the micro-batches [start, stop)."""
        return replace(self, **{name: getattr(self, name)[start:stop] for name in _LISTS})


_LISTS = [each.name for each in fields(Selection) if each.name != "found"]


@torch.no_grad()
def select_tokens(
    inputs: Sequence[TokenInputs],
    log_probs: Sequence[Tensor],
    entropies: Sequence[Tensor],
    algorithm: Algorithm,
    *,
    update: int,
    group: ProcessGroup | None,
    is_global: bool = True,
) -> Selection:
    """Covariance and selection over all given micro-batches and all ranks of the group.

    Collectives: group: those of `covariance`, then those of the selector. Every rank of the group must call it, also
    one whose micro-batches hold no token.

    Args:
        inputs: of the micro-batches in scope on this rank.
        log_probs: [t] of the same micro-batches, under the policy about to be updated.
        entropies: [t] nats of the same micro-batches, likewise; empty where unknown, which no method that needs them
            allows.
        algorithm: selector, its hyperparameters, and the loss whose clipped tokens Clip-Cov leaves alone.
        update: number of the optimizer step in the run, which seeds random draws together with the run's seed.
        group: dp_cp, or cp for one micro-batch alone; None selects among this rank's given tokens.
        is_global: whether these are all tokens of an optimizer step or more, not those of one micro-batch alone.

    Returns:
        The selection, micro-batch by micro-batch.
    """
    assert algorithm.select is not None
    selection_inputs = _selection_inputs(
        inputs, log_probs, entropies, algorithm, update=update, group=group, is_global=is_global
    )
    select, hyperparameters = algorithm.select, algorithm.selection_hyperparameters
    candidates = (
        selection_inputs.kept_mask
        if select.candidates is None
        else select.candidates(selection_inputs, **hyperparameters)
    )
    mask, weights, found = select.choose(selection_inputs, **hyperparameters)
    return Selection(
        masks=split_like(mask, inputs),
        scores=split_like(select.scores(selection_inputs), inputs),
        candidates=split_like(candidates, inputs),
        log_probs=list(log_probs),
        entropies=list(entropies),
        weights=[] if weights is None else split_like(weights, inputs),
        found=found,
    )


def _selection_inputs(
    inputs: Sequence[TokenInputs],
    log_probs: Sequence[Tensor],
    entropies: Sequence[Tensor],
    algorithm: Algorithm,
    *,
    update: int,
    group: ProcessGroup | None,
    is_global: bool,
) -> SelectionInputs:
    """All that a method may read of the tokens in scope. Collectives: group: those of `covariance`."""
    joined = torch.cat(list(log_probs))
    old = join_if_known(inputs, "old_log_probs")
    advantages, kept = join(inputs, "advantages"), join(inputs, "kept_mask")
    cov = covariance(joined, advantages, kept, group=group)
    batch = LossBatch(
        log_probs=joined,
        old_log_probs=joined if old is None else old,  # before the first update the policy is the old one
        advantages=join(inputs, "policy_advantages"),
        kept_mask=kept,
        token_weights=join(inputs, "token_weights"),
    )
    eligible = kept & ~algorithm.loss.clipped(batch, **algorithm.loss_hyperparameters)
    return SelectionInputs(
        cov=cov,
        entropy=join_if_known(inputs, "entropy"),
        kept_mask=kept,
        token_ids=join(inputs, "token_ids"),
        eligible_mask=eligible,
        seed=algorithm.seed,
        update=update,
        group=group,
        log_probs=joined,
        old_log_probs=batch.old_log_probs,
        rollout_log_probs=join(inputs, "rollout_log_probs"),
        policy_advantages=batch.advantages,
        current_entropy=torch.cat(list(entropies)) if entropies else None,
        is_global=is_global,
    )


def select_each(
    inputs: Sequence[TokenInputs],
    log_probs: Sequence[Tensor],
    entropies: Sequence[Tensor],
    algorithm: Algorithm,
    *,
    update: int,
    group: ProcessGroup | None,
) -> Selection:
    """Selection inside each micro-batch on its own, as the paper's code and verl do.

    Collectives: group: those of `select_tokens`, micro-batch by micro-batch.

    Args:
        inputs: of the micro-batches.
        log_probs: [t] of the same micro-batches.
        entropies: as in `select_tokens`.
        algorithm: as in `select_tokens`.
        update: as in `select_tokens`.
        group: cp, whose ranks share each micro-batch.

    Returns:
        The selection, micro-batch by micro-batch.
    """
    parts = [
        select_tokens([one], [lp], entropies[i : i + 1], algorithm, update=update, group=group, is_global=False)
        for i, (one, lp) in enumerate(zip(inputs, log_probs, strict=True))
    ]
    return concatenate(parts)


def concatenate(parts: Sequence[Selection]) -> Selection:
    """Join selections of consecutive micro-batches into one; what it has found is that of the first."""
    lists: dict[str, Any] = {name: [values for part in parts for values in getattr(part, name)] for name in _LISTS}
    return replace(parts[0], **lists)
