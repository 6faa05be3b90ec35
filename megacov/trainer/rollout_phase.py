"""Samples in and weights out, as seen from every rank: rank 0 talks to the servers, all receive the same batch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from megacov.megatron.policy import Policy
from megacov.parallel.collectives import broadcast_tensor
from megacov.parallel.groups import ParallelGroups
from megacov.rollout import CarriedGroup
from megacov.trainer.agreement import from_rank_zero, on_rank_zero
from megacov.trainer.rollout_worker import RolloutWorker
from megacov.trainer.state import TrainState
from megacov.types import RolloutBatch


class RolloutPhase:
    """The rollout of a run. Every method is a collective of all ranks; a failure on rank 0 is raised on all."""

    def __init__(self, groups: ParallelGroups, worker: RolloutWorker | None) -> None:
        """Hold what rank 0 works with. `is_under_way` says on every rank whether a batch was begun.

        Args:
            groups: of this rank.
            worker: on rank 0; None elsewhere.
        """
        assert (worker is not None) == (groups.world_rank == 0)
        self._groups = groups
        self._worker = worker
        self._pushed: int | None = None
        self.is_under_way = False

    def push_weights(self, policy: Policy, *, version: int) -> None:
        """Give the current weights to the rollout servers, if they do not have them.

        Collectives: those of `Policy.hf_weights`, then of `on_rank_zero`.

        Args:
            policy: the policy.
            version: name of these weights.

        Raises:
            WeightSyncError: a server did not take them; raised on every rank.
        """
        if self._pushed == version:
            return
        weights = list(policy.hf_weights())
        on_rank_zero(lambda: self._rank_zero.push_weights(weights, version=version), self._groups)
        self._pushed = version

    def begin(self, state: TrainState, *, step: int) -> None:
        """Begin to sample and judge a rollout batch, from the weights that were pushed last. Comes back at once.

        Args:
            state: where the run stands.
            step: that will be trained on the batch, from 0.
        """
        assert not self.is_under_way and self._pushed is not None
        self.is_under_way = True
        if self._worker is not None:
            self._worker.begin(step=step, version=self._pushed, prompt_position=state.prompt_position)

    def collect(self, state: TrainState) -> tuple[RolloutBatch, dict[str, float]]:
        """Wait for the rollout batch that was begun.

        Collectives: control: `on_rank_zero`, then `broadcast_tensor` of each tensor of the batch, then
        `from_rank_zero` of metrics and data position.

        Args:
            state: where the run stands; its data position is advanced here.

        Returns:
            The batch on the CPU and its metrics, equal on all ranks.

        Raises:
            RolloutError: no full batch could be had; raised on every rank.
            RewardError: a reward is not a finite number; raised on every rank.
            LeaveRequested: interrupted, on every rank; the state is as before.
        """
        self.is_under_way = False
        told: dict[str, Any]
        collected = on_rank_zero(lambda: self._rank_zero.collect(state), self._groups)
        batch = _broadcast_batch(None if collected is None else collected.batch, self._groups)
        told = {} if collected is None else {"position": collected.prompt_position, "metrics": collected.metrics}
        told = from_rank_zero(told, self._groups)
        state.prompt_position = told["position"]
        return batch, told["metrics"]

    @property
    def carried(self) -> tuple[CarriedGroup, ...]:
        """What partial rollouts have left behind the last batch, on rank 0; nothing elsewhere."""
        return () if self._worker is None else self._worker.carried

    def interrupt(self) -> None:
        """Have a batch under way given up; `collect` then raises LeaveRequested on all ranks. For signal handlers."""
        if self._worker is not None:
            self._worker.interrupt()

    @property
    def _rank_zero(self) -> RolloutWorker:
        assert self._worker is not None
        return self._worker


def _broadcast_batch(batch: RolloutBatch | None, groups: ParallelGroups) -> RolloutBatch:
    received: dict[str, Any] = {}
    for field in fields(RolloutBatch):
        if field.name == "max_response_length":
            continue
        value: Tensor | None = None if batch is None else getattr(batch, field.name)
        received[field.name] = broadcast_tensor(value, src_rank=0, group=groups.control).cpu()
    stride = torch.tensor(batch.max_response_length) if batch is not None else None
    received["max_response_length"] = int(broadcast_tensor(stride, src_rank=0, group=groups.control))
    return RolloutBatch(**received)
