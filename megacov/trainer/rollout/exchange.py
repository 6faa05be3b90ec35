"""Samples in and weights out, on every rank: rank 0 talks to the servers, and all ranks receive the same batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from megacov.errors import RolloutError, WeightSyncError
from megacov.megatron.policy import Policy
from megacov.parallel.collectives import broadcast_tensor
from megacov.parallel.groups import ParallelGroups
from megacov.rollout import ServersWaitError
from megacov.trainer.agreement import from_rank_zero, on_rank_zero
from megacov.trainer.rollout.worker import Collected, RolloutWorker
from megacov.trainer.state import RolloutState, TrainState
from megacov.types import RolloutBatch
from megacov.weight_sync import OwnShards, ShardSender
from megacov.weight_sync.shard_sender import Command

_MAX_PUSHES = 4  # of the same weights, each to the servers that are left


class RolloutExchange:
    """The rollouts of a run. Every method is a collective of all ranks; a failure on rank 0 is raised on all ranks.

    is_under_way: whether a batch has begun; equal on every rank.
    shown: rows of the last collected batch that people see in RUN/samples; equal on every rank.
    """

    def __init__(self, groups: ParallelGroups, worker: RolloutWorker | None, *, sends_shards: bool = False) -> None:
        """Begin nothing yet.

        Args:
            groups: process groups of this rank.
            worker: the worker on rank 0, None on other ranks.
            sends_shards: whether every rank sends its shards to the servers itself, so that nothing is gathered.
        """
        assert (worker is not None) == (groups.world_rank == 0)
        self._groups = groups
        self._worker = worker
        self._sends_shards, self._sender = sends_shards, ShardSender()
        self._failure = ""  # reason why the last push failed
        self._num_waits = 0  # times since the last batch that servers needed another push
        self._pushed: int | None = None
        self.is_under_way = False
        self.shown: list[int] = []

    def push_weights(self, policy: Policy, *, version: int) -> None:
        """Push the current weights to the rollout servers, if they do not have them.

        If servers are lost during a push, it is repeated to those that are left.

        Collectives: for each push those of `from_rank_zero`, `Policy.hf_weights`, `on_rank_zero`, `from_rank_zero`; if
        every rank sends its shards, `from_rank_zero` for each command of rank 0 instead of the first two.

        Args:
            policy: source of the weights.
            version: version of the weights.

        Raises:
            WeightSyncError: no server took the weights; raised on every rank.
        """
        if self._pushed == version:
            return
        why = ""
        for _ in range(_MAX_PUSHES):
            if self._sends_shards:
                self._push_shards(policy, version)
            else:
                self._push_gathered(policy, version)
            why = from_rank_zero(self._failure, self._groups)
            if not why:
                self._pushed = version
                return
        raise WeightSyncError(f"New weights did not reach the rollout servers in {_MAX_PUSHES} attempts: {why}")

    def _push_gathered(self, policy: Policy, version: int) -> None:
        weights = _when_wanted(policy.hf_weights(), self._groups)
        if self._worker is None:
            _exhaust(weights)

        def push() -> None:
            try:
                self._failure = self._rank_zero.push_weights(weights, version=version) or ""
            finally:
                _exhaust(weights)  # the other ranks gather to the end, so rank 0 must too

        on_rank_zero(push, self._groups)

    def _push_shards(self, policy: Policy, version: int) -> None:
        """Rank 0 leads the others by commands, the last of which is None."""
        tensors, groups = policy.own_shards(), self._groups
        if self._worker is None:
            no_command: Command | None = None  # rank 0's counts
            while (command := from_rank_zero(no_command, groups)) is not None:
                self._sender.obey(command, tensors, rank=groups.world_rank)

        def push() -> None:
            shards = OwnShards(tensors, groups.world_size, lambda command: from_rank_zero(command, groups))
            try:
                self._failure = self._rank_zero.push_weights(shards, version=version) or ""
            finally:
                from_rank_zero(None, groups)

        on_rank_zero(push, groups)

    def begin(self, state: TrainState, *, step: int) -> None:
        """Begin to sample and judge a rollout batch from the weights that were pushed last; returns at once.

        Args:
            state: progress of the run.
            step: step that will train on the batch, from 0.
        """
        assert not self.is_under_way and self._pushed is not None
        self.is_under_way = True
        if self._worker is not None:
            self._worker.begin(step=step, version=self._pushed, prompt_position=state.prompt_position)

    def collect(self, state: TrainState) -> tuple[RolloutBatch, dict[str, float]] | None:
        """Wait for the rollout batch that was begun.

        Collectives, on the control group: `on_rank_zero`, `from_rank_zero`; then, if there is a batch,
        `from_rank_zero`, `broadcast_tensor` of each of its tensors and `from_rank_zero` of metrics, data position and
        shown rows.

        Args:
            state: progress of the run; this advances its data position.

        Returns:
            The batch on the CPU and its metrics, equal on all ranks. None if the weights must be pushed again and the
            batch begun again, because all servers that are left were lost since the last push.

        Raises:
            RolloutError: the servers gave no full batch; raised on every rank.
            RewardError: the verifier failed on too many responses; raised on every rank.
            LeaveRequested: `interrupt` was called; raised on every rank, with the state unchanged.
        """
        self.is_under_way = False
        received: dict[str, Any]
        collected = on_rank_zero(lambda: self._collect(state), self._groups)
        if not from_rank_zero(collected is not None, self._groups):
            self._pushed = None
            return None
        batch = _broadcast_batch(None if collected is None else collected.batch, self._groups)
        received = {}
        if collected is not None:
            received = {name: getattr(collected, name) for name in ("prompt_position", "metrics", "shown")}
        received = from_rank_zero(received, self._groups)
        state.prompt_position, self.shown = received["prompt_position"], received["shown"]
        return batch, received["metrics"]

    def write_samples(self, values: Tensor | None, *, step: int) -> None:
        """Write the shown samples of the last collected batch, once; does nothing if they are written.

        Collectives: `on_rank_zero`.

        Args:
            values: of their tokens, as `TokenReport.values`; read on rank 0 alone. None for texts alone.
            step: step that has trained on them, from 1.

        Raises:
            DataError: writing fails; raised on every rank.
        """
        on_rank_zero(lambda: self._rank_zero.samples.write(values, step=step), self._groups)

    @property
    def state(self) -> RolloutState:
        """What the next batch continues from, on rank 0; empty on other ranks."""
        return RolloutState() if self._worker is None else self._worker.state

    @state.setter
    def state(self, state: RolloutState) -> None:
        if self._worker is not None:
            self._worker.state = state

    def _collect(self, state: TrainState) -> Collected | None:
        try:
            collected = self._rank_zero.collect(state)
        except ServersWaitError as error:
            self._num_waits += 1
            if self._num_waits == _MAX_PUSHES:
                raise RolloutError(f"All rollout servers were lost {_MAX_PUSHES} times in one step: {error}") from error
            return None
        self._num_waits = 0
        return collected

    def finish_evaluations(self) -> None:
        """Wait for evaluations that are due, within their deadline.

        Collectives: `on_rank_zero`.
        """
        on_rank_zero(lambda: self._rank_zero.finish_evaluations(), self._groups)

    def interrupt(self) -> None:
        """Give up the batch under way; `collect` then raises LeaveRequested on all ranks. For signal handlers."""
        if self._worker is not None:
            self._worker.interrupt()

    @property
    def _rank_zero(self) -> RolloutWorker:
        assert self._worker is not None
        return self._worker


def _when_wanted(weights: Iterator[tuple[str, Tensor]], groups: ParallelGroups) -> Iterator[tuple[str, Tensor]]:
    """Gather weights from the moment that rank 0 asks for the first: it may first have to wait for servers."""
    from_rank_zero("now", groups)  # on the control group, whose deadline allows for that wait
    yield from weights


def _exhaust(weights: Iterator[object]) -> None:
    deque(weights, maxlen=0)


def _broadcast_batch(batch: RolloutBatch | None, groups: ParallelGroups) -> RolloutBatch:
    received: dict[str, Any] = {}
    names = [field.name for field in fields(RolloutBatch) if isinstance(getattr(batch, field.name, None), Tensor)]
    for name in from_rank_zero(names, groups):
        value: Tensor | None = None if batch is None else getattr(batch, name)
        received[name] = broadcast_tensor(value, src_rank=0, group=groups.control).cpu()
    stride = torch.tensor(batch.max_response_length) if batch is not None else None
    received["max_response_length"] = int(broadcast_tensor(stride, src_rank=0, group=groups.control))
    return RolloutBatch(**received)
