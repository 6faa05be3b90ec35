"""How many positions of an optimizer step all ranks may keep until their backwards, for `selection.method: auto`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import psutil
import torch

from megacov.config import RunConfig
from megacov.parallel.collectives import all_reduce_max
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import from_rank_zero

GIB = 2**30
KeptPositions = Callable[[int, bool], int]
"""(bytes that a rank may use, whether layers are Transformer Engine's) -> positions that fit, as a plan counts them."""

CPU_SHARE = 0.5
"""Part of the free main memory that ranks on a CPU plan with; servers, verifiers and page cache have the rest."""


def agree_on_kept_positions(
    config: RunConfig, plan: KeptPositions | None, groups: ParallelGroups, *, is_fused: bool
) -> int | None:
    """Find the positions that fit beside everything else on every rank, before there is a model.

    Collectives, under `auto` alone: control: MAX of an int64, and `from_rank_zero` of a number.

    Args:
        config: of the run.
        plan: computes them, asked on rank 0 alone; None there if the run cannot be planned.
        groups: process groups of this rank.
        is_fused: whether layers are Transformer Engine's.

    Returns:
        The positions, or None where nobody asks or no plan says.
    """
    if not config.selects_by_current or config.algorithm.selection.method != "auto":
        return None
    usable = -int(all_reduce_max(torch.tensor(-_usable_bytes(config, groups)), group=groups.control))
    asked = plan if groups.world_rank == 0 else None
    positions = from_rank_zero(None if asked is None else asked(usable, is_fused), groups)
    if groups.world_rank == 0 and not positions:
        why = "the run cannot be planned" if positions is None else "no memory is left to keep activations in"
        print(
            f"megacov: algorithm.selection.method auto lets no backward wait for a selection: {why}.",
            file=sys.stderr,
        )
    return positions


def _usable_bytes(config: RunConfig, groups: ParallelGroups) -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1] - int(config.cluster.gpu_reserve_gib * GIB)
    # All ranks may be on this machine.
    return int(CPU_SHARE * psutil.virtual_memory().available / groups.world_size)
