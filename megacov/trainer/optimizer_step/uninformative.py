"""How many selections of a step had nothing to go by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megacov.ops import masked_extremes
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.scope import make_scope
from megacov.trainer.optimizer_step.selection import concatenate
from megacov.trainer.optimizer_step.update import UpdateOutcome


def count_uninformative(
    outcomes: Sequence[UpdateOutcome], algorithm: Algorithm, groups: ParallelGroups
) -> dict[str, float]:
    """Selections that were left out because all scores in their scope are equal.

    Collectives: dp_cp: those of `masked_extremes` for each selection in a global scope, of a method that leaves such
    selections out.

    Args:
        outcomes: one an optimizer step, on the last stage.
        algorithm: its selection and scope are read.
        groups: this rank's process groups.

    Returns:
        `selection/uninformative`; nothing for other methods and scopes.
    """
    scope = make_scope(algorithm, groups)
    if algorithm.select is None or not algorithm.select.skips_equal_scores or not scope.is_global:
        return {}
    number = 0
    for places in dict.fromkeys(scope.mini_batches_of(i, len(outcomes)) for i in range(len(outcomes))):
        found = concatenate([selection for i in places if (selection := outcomes[i].selection) is not None])
        scores, competed = torch.cat(found.scores), torch.cat(found.candidates)
        smallest, largest = masked_extremes(scores, competed, group=groups.dp_cp)
        number += int(smallest == largest)
    return {"selection/uninformative": float(number)}
