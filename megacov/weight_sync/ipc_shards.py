"""Weights in requests to servers on this machine, as `TensorTransport`, but for each rank of a server its own part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megacov.config import RunConfig
from megacov.errors import RolloutError, WeightSyncError
from megacov.plan.weight_parts import ServerLayout
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import PushTimes, RunOnLoop, ServersFailedError
from megacov.weight_sync.meeting import Meeting
from megacov.weight_sync.reach import is_on_loopback, not_on_loopback
from megacov.weight_sync.session import SessionSettings
from megacov.weight_sync.shard_assembly import Payloads, plan_of
from megacov.weight_sync.shard_buckets import AssemblyPlan, divide
from megacov.weight_sync.shard_group import HandOver, ShardGroup
from megacov.weight_sync.shard_rounds import Description
from megacov.weight_sync.shard_sender import OwnShards
from megacov.weight_sync.shard_transport import LOADER, ShardTransport, planner

if TYPE_CHECKING:
    from torch import Tensor


class IpcShardsTransport(ShardTransport[AssemblyPlan]):
    """Weights by SGLang's update_weights_from_tensor with `load_format: direct`, only for servers on this machine.

    For each rank of a server, a rank of the trainer puts the parameters together, from its own shards and from what
    other ranks have of them. Requests have one payload for each rank of the server: bytes on a CPU, handles of GPU
    memory on a GPU. A parameter in a wrong shape would end the server, so all are compared with what the servers
    describe, when the group is new. Before each further push they describe themselves again: one that was started anew,
    perhaps in another layout, is not in the group and cannot. The group, over gloo, carries descriptions, checksums and
    payloads.
    """

    name, instead, describes_each_push = "ipc_shards", "ipc", True

    def __init__(
        self,
        clients: Sequence[RolloutClient],
        *,
        run: RunOnLoop,
        settings: SessionSettings,
        meeting: Meeting,
        make_plan: Callable[[ServerLayout], AssemblyPlan],
        has_gpus: bool = False,
    ) -> None:
        """Ask no server yet.

        Args:
            clients: one client per server; each push goes to the clients in the list at that time.
            run: runs the clients' coroutines.
            settings: how tensors are handed over.
            meeting: where the ranks meet, over gloo.
            make_plan: plans for one of the servers.
            has_gpus: whether the trainer's parameters are on GPUs.
        """
        super().__init__(clients, run=run, settings=settings, meeting=meeting, make_plan=make_plan)
        self._has_gpus = has_gpus

    @classmethod
    def from_config(
        cls, config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
    ) -> IpcShardsTransport:
        """See `WeightTransport.from_config`."""
        make_plan = planner(config)
        return cls(
            clients,
            run=run,
            settings=SessionSettings.from_section(config.weight_sync),
            # Servers may be on the trainer's GPUs, and NCCL refuses two ranks on one.
            meeting=Meeting("gloo", "127.0.0.1", torch.device("cpu")),
            # All servers get the same, so one is planned for; replicas all have what one of them sends.
            make_plan=lambda servers: make_plan(replace(servers, number=1)).of_one_replica(),
            has_gpus=dist.get_backend() == "nccl",
        )

    def _prepare(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._run(self._everywhere(_check_is_local))
        super()._prepare(named_tensors)

    def _more_to_join(self, shards: OwnShards) -> dict[str, Any]:
        return {"num_own": shards.num_ranks} if self._has_gpus else {}

    def _share_out(self, plan: AssemblyPlan, joined: ShardGroup, layouts: Mapping[int, Description]) -> None:
        first_ranks = [joined.first_rank(server) for server in range(len(joined.members))]
        of_one = {rank - first_ranks[0]: layouts[rank] for rank in range(first_ranks[0], joined.first_rank(1))}
        for first_rank, member in zip(first_ranks, joined.members, strict=True):
            for receiver, layout in of_one.items():
                self._check_is_equal(layout, layouts[first_rank + receiver], member, joined.members[0])
        buckets = divide(plan, of_one, max_bytes=self._settings.bucket_bytes)
        for rank in range(joined.num_senders):
            self._sender.board.write(f"plan/{rank}", plan_of(rank, buckets, first_ranks=first_ranks))
        joined.num_buckets = len(buckets)
        joined.num_bytes = sum(
            part.num_bytes
            for bucket in buckets
            for share in bucket.values()
            for _, parts in share.gives
            for _, part in parts
        )

    def _check_is_equal(
        self, one: Description, other: Description, member: RolloutClient, first: RolloutClient
    ) -> None:
        """Refuse a server that stores a parameter otherwise than the first; raises WeightSyncError."""
        for name, (dtype, _) in one.items():
            if other[name][0] != dtype:
                raise WeightSyncError(
                    f"weight_sync.transport is {self.name}, {first.address} stores {name} as {dtype}, and "
                    f"{member.address} as {other[name][0]}: start equal servers, or set "
                    f"weight_sync.transport={self.instead}."
                )

    def _hand_over(self, named_tensors: Iterable[tuple[str, Tensor]], times: PushTimes) -> None:
        assert isinstance(named_tensors, OwnShards) and self._joined is not None
        joined, shards = self._joined, named_tensors
        with_sums = self._always_sums or not joined.is_verified
        with times.phase("transfer"):
            # The servers describe themselves, and what they hold, once they have taken everything.
            hand_over = self._begin("describe", joined, with_sums=with_sums)
            order = {"number": hand_over.number, "with_sums": with_sums, "timeout_s": self._timeout_s}
            for bucket in range(joined.num_buckets):
                self._run(self._keep_pause_short())
                payloads = self._assemble(hand_over, shards, {"bucket": bucket, **order})
                self._run(self._send(joined, payloads))
            shards.lead({"do": "release"})
            self._sender.release()
            if with_sums:
                self._run(self._compare_sums(hand_over))
                joined.is_verified = True
            self._run(hand_over.results(range(joined.num_senders)))
            hand_over.clear()
        times.num_bytes = joined.num_bytes

    def _assemble(self, hand_over: HandOver, shards: OwnShards, order: Mapping[str, Any]) -> Payloads:
        shards.lead({"do": "assemble", **order})
        try:
            return self._sender.assemble(shards.tensors, **order)
        except RuntimeError as error:  # of torch
            hand_over.raise_failures()
            raise ServersFailedError({}, f"ranks of the trainer could not put shards together ({error}).") from error

    async def _send(self, joined: ShardGroup, payloads: Payloads) -> None:
        of_server = {
            member: [payloads[receiver][number % len(payloads[receiver])] for receiver in sorted(payloads)]
            for number, member in enumerate(joined.members)
        }
        # Memory of the trainer must not change until every server has answered that it has read it.
        await self._everywhere(
            lambda client: client.weights.take_tensors(of_server[client], flush_cache=False, as_held=True)
        )

    async def _compare_sums(self, hand_over: HandOver) -> None:
        await self._keep_pause_short()
        await self._everywhere(lambda client: client.weights.run_loader(LOADER))
        await hand_over.results(range(hand_over.group.world_size))
        hand_over.compare_sums()


async def _check_is_local(client: RolloutClient) -> None:
    if not is_on_loopback(client.address):
        raise RolloutError(not_on_loopback("ipc_shards", client.address))
