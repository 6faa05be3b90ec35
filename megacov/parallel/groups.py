"""The process groups of one rank, in a frozen record that callers pass down explicitly.

A group of None means "this rank alone": nothing is sent, and nothing falls back to the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megacov.parallel.collectives import group_rank, group_size

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class ParallelGroups:
    """The groups that this rank belongs to. `ParallelGroups()` is a single rank without torch.distributed.

    world: every rank of the run.
    control: every rank, over gloo and with its own deadline, for small messages and for batches on the CPU. All ranks
        wait in it while rank 0 samples.
    tp: tensor parallel; its ranks hold the shards of one layer and of the vocabulary.
    pp: pipeline parallel, first stage first; only the last stage has logits.
    cp: context parallel; its ranks hold the same shard of the weights and different parts of the same sequences.
    dp: data parallel; its ranks hold the same shard of the weights and different samples.
    ep: expert parallel; each of its ranks holds a contiguous part of every layer's experts.
    expert_dp: its ranks hold the same experts.
    dp_cp: data and context parallel together; its ranks hold disjoint tokens, which is the scope of a selection.
    """

    world: ProcessGroup | None = None
    control: ProcessGroup | None = None
    tp: ProcessGroup | None = None
    pp: ProcessGroup | None = None
    cp: ProcessGroup | None = None
    dp: ProcessGroup | None = None
    dp_cp: ProcessGroup | None = None
    ep: ProcessGroup | None = None
    expert_dp: ProcessGroup | None = None

    @property
    def world_rank(self) -> int:
        """Rank of this process in the run, from 0."""
        return group_rank(self.world)

    @property
    def world_size(self) -> int:
        """Number of ranks in the run."""
        return group_size(self.world)

    @property
    def tp_rank(self) -> int:
        """Index of the vocabulary shard that this rank holds."""
        return group_rank(self.tp)

    @property
    def tp_size(self) -> int:
        """Number of tensor-parallel shards."""
        return group_size(self.tp)

    @property
    def pp_rank(self) -> int:
        """Index of this rank's pipeline stage."""
        return group_rank(self.pp)

    @property
    def pp_size(self) -> int:
        """Number of pipeline stages."""
        return group_size(self.pp)

    @property
    def cp_rank(self) -> int:
        """Index of this rank's part of each sequence."""
        return group_rank(self.cp)

    @property
    def cp_size(self) -> int:
        """Number of parts that each sequence is split into."""
        return group_size(self.cp)

    @property
    def replica_rank(self) -> int:
        """Index among the ranks that hold the same shard of the weights."""
        return group_rank(self.dp_cp)

    @property
    def ep_rank(self) -> int:
        """Index of this rank's part of the experts."""
        return group_rank(self.ep)

    @property
    def ep_size(self) -> int:
        """Number of parts that the experts of a layer are split into."""
        return group_size(self.ep)

    @property
    def expert_replica_rank(self) -> int:
        """Index among the ranks that hold the same experts."""
        return group_rank(self.expert_dp)

    @property
    def dp_rank(self) -> int:
        """Index of this rank's share of the samples."""
        return group_rank(self.dp)

    @property
    def dp_size(self) -> int:
        """Number of shares that the samples are split into."""
        return group_size(self.dp)

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds the tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has logits, and therefore log-probs, a loss and a selection."""
        return self.pp_rank == self.pp_size - 1
