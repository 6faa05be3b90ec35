"""What transports of shards share: one group of trainer and servers, and a plan that fits what the servers have."""

from __future__ import annotations

import asyncio
import secrets
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from megacov.config import RunConfig
from megacov.config.transports import TRANSPORTS
from megacov.errors import MegacovError, RolloutError, WeightSyncError
from megacov.plan.layout import Layout
from megacov.plan.model_sizes import read_model_sizes
from megacov.plan.reshard import ReshardPlan, plan_reshard
from megacov.plan.weight_parts import ServerLayout
from megacov.rollout import RolloutClient
from megacov.types import WeightGroup
from megacov.weight_receiver.megacov_receiver import GROUP_PREFIX
from megacov.weight_sync.base import RunOnLoop, ServersFailedError
from megacov.weight_sync.meeting import Meeting, in_thread
from megacov.weight_sync.process_group import open_store
from megacov.weight_sync.servers import leave_on_every_server
from megacov.weight_sync.session import SessionSettings, SessionTransport
from megacov.weight_sync.shard_group import HandOver, ShardGroup
from megacov.weight_sync.shard_rounds import Description, ShardPlan, check_layout
from megacov.weight_sync.shard_sender import OwnShards, ShardSender

if TYPE_CHECKING:
    from torch import Tensor
    from torch._C._distributed_c10d import TCPStore

_LEAVE_TIMEOUT_S = 30.0
LOADER = TRANSPORTS["reshard"].loader or ""
Plan = TypeVar("Plan", bound=ShardPlan)


class ShardTransport(SessionTransport, Generic[Plan]):
    """Leads all ranks of the trainer, which form a group with all ranks of the servers.

    The group lasts from push to push. It is replaced when the set of servers has changed, and after a failure. When it
    is new, the servers' ranks describe their parameters, rank 0 compares them with the plan, and gives each rank its
    own part. Checksums of what was sent and of what the servers hold are compared in the first push over a group, and
    in each if `settings.verify` is checksums.
    """

    name: str
    """The transport's name in weight_sync.transport."""
    instead: str
    """The transport that the sentences of errors name."""
    describes_each_push: bool = False
    """Whether servers describe themselves before each push, which only the processes of the group can."""

    def __init__(
        self,
        clients: Sequence[RolloutClient],
        *,
        run: RunOnLoop,
        settings: SessionSettings,
        meeting: Meeting,
        make_plan: Callable[[ServerLayout], Plan],
    ) -> None:
        """Ask no server yet.

        Args:
            clients: one client per server; each push goes to the clients in the list at that time.
            run: runs the clients' coroutines.
            settings: how tensors are handed over.
            meeting: where the ranks meet.
            make_plan: plans who sends what to whom.
        """
        # Sums that the trainer's own ranks have made say more than those of servers compared with each other.
        verify = "version" if settings.verify == "checksums" else settings.verify
        super().__init__(clients, run=run, settings=replace(settings, verify=verify))
        self._always_sums = settings.verify == "checksums"
        self._meeting, self._make_plan = meeting, make_plan
        self._sender = ShardSender()
        self._joined: ShardGroup | None = None
        self._number = 0

    @abstractmethod
    def _share_out(self, plan: Plan, joined: ShardGroup, layouts: Mapping[int, Description]) -> None:
        """Write each rank's part of the plan to the board, where the group is new.

        Args:
            plan: the plan, which fits the servers.
            joined: the group; this sets its `num_bytes`.
            layouts: rank in the group -> layout, of every receiving rank.
        """

    def _more_to_join(self, shards: OwnShards) -> dict[str, Any]:
        """Further arguments of `ShardSender.join` on all ranks of the trainer."""
        return {}

    def _prepare(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        assert isinstance(named_tensors, OwnShards)
        members, joined = tuple(self._members), self._joined
        is_same = joined is not None and joined.members == members
        if is_same and not self.describes_each_push:
            return
        if not is_same:
            self._run(self._leave())
            # A rank that waits for a missing one waits until its deadline, so check first that all servers answer.
            self._run(self._everywhere(lambda client: client.model_info()))
        try:
            if joined is not None and is_same:
                self._run(self._describe(joined))
            else:
                self._join(members, named_tensors)
        except MegacovError as error:
            silent = self._run(self._abandon())
            if isinstance(error, ServersFailedError):
                raise ServersFailedError(silent or error.failures, str(error)) from error
            raise

    def _join(self, members: tuple[RolloutClient, ...], shards: OwnShards) -> None:
        joined = ShardGroup(f"{GROUP_PREFIX}{secrets.token_hex(4)}", members, shards.num_ranks)
        layout, meeting, timeout_s = self._server_layout(members), self._meeting, self._settings.timeout_s
        store = open_store(meeting.host, world_size=joined.world_size, timeout_s=timeout_s)
        place = {
            "name": joined.name,
            "backend": meeting.backend,
            "world_size": joined.world_size,
            # NCCL's watchdog kills a process whose message is late; this process must give up first.
            "timeout_s": 2.0 * timeout_s if meeting.backend == "nccl" else timeout_s,
            **self._more_to_join(shards),
        }
        self._joined = joined
        shards.lead({"do": "join", "host": meeting.host, "port": store.port, **place})
        self._run(self._meet(joined, store, place))
        layouts = self._run(self._describe(joined))
        plan = self._make_plan(layout)
        for server, member in enumerate(members):
            for receiver in range(layout.tensor):
                found = layouts[joined.first_rank(server) + receiver]
                self._check_order(member, found)
                check_layout(plan, receiver, found, server=member.address, transport=self.name, instead=self.instead)
        self._share_out(plan, joined, layouts)

    async def _meet(self, joined: ShardGroup, store: TCPStore, place: Mapping[str, Any]) -> None:
        groups = {
            member: WeightGroup(
                name=joined.name,
                master_address=self._meeting.host,
                master_port=store.port,
                rank_offset=joined.first_rank(number),
                world_size=joined.world_size,
                backend=self._meeting.backend,
            )
            for number, member in enumerate(joined.members)
        }
        joining = in_thread(lambda: self._sender.join(store, rank=0, **place))
        try:
            await self._everywhere(lambda member: member.weights.init_group(groups[member]))
            async with asyncio.timeout(self._settings.timeout_s):
                await joining
        except (RuntimeError, TimeoutError) as error:  # of torch.distributed
            raise ServersFailedError({}, f"the group of trainer and servers did not form ({error!r}).") from error
        finally:
            joining.cancel()

    async def _describe(self, joined: ShardGroup) -> dict[int, Description]:
        """Layout of each receiving rank. The servers keep their weights."""
        hand_over = self._begin("describe", joined)
        await self._everywhere(lambda client: client.weights.begin())
        await self._everywhere(lambda client: self._run_receiver(client, hand_over))
        await self._everywhere(lambda client: client.weights.end())
        layouts = {rank: result["layout"] for rank, result in (await hand_over.results(joined.receivers)).items()}
        hand_over.clear()
        return layouts

    async def _run_receiver(self, client: RolloutClient, hand_over: HandOver) -> None:
        await client.weights.run_loader(LOADER)
        hand_over.check_has_ended(client)  # SGLang answers "Success" whatever a receiver did

    @property
    def _timeout_s(self) -> float:
        timeout_s = self._pause.deadline_s(self._settings.timeout_s)
        assert timeout_s is not None
        return timeout_s

    def _begin(self, kind: str, joined: ShardGroup, *, with_sums: bool = False) -> HandOver:
        """Write what the receivers are to do when they are called next."""
        self._number += 1
        hand_over = HandOver(joined, self._sender.board, number=self._number, timeout_s=self._timeout_s)
        hand_over.begin(kind, with_sums=with_sums)
        return hand_over

    async def _abandon(self) -> dict[RolloutClient, RolloutError]:
        await self._leave()
        return await super()._abandon()

    async def _leave(self) -> None:
        """Leave the group, in which a rank may be stuck, and have the servers that answer leave it too.

        The other ranks of the trainer leave it when they join the next one.
        """
        if self._joined is None:
            return
        joined, self._joined = self._joined, None
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await in_thread(self._sender.leave)
        staying = [member for member in joined.members if member in self._clients]
        await leave_on_every_server(staying, joined.name, timeout_s=self._settings.timeout_s)

    def _check_order(self, member: RolloutClient, layout: Description) -> None:
        """Refuse experts whose order in a server's tensors is not known; raises WeightSyncError."""
        if member.capabilities.reorders_experts and any(".experts." in name for name in layout):
            raise WeightSyncError(
                f"weight_sync.transport is {self.name}, and {member.address} may store experts in an order of its own: "
                f"start it with --moe-runner-backend triton, or set weight_sync.transport={self.instead}."
            )

    def _server_layout(self, members: Sequence[RolloutClient]) -> ServerLayout:
        """The layout that all servers have; raises WeightSyncError if they differ."""
        layouts = {
            (member.capabilities.tensor_parallel, member.capabilities.expert_parallel): member for member in members
        }
        if len(layouts) > 1:
            (one, first), (other, second), *_ = layouts.items()
            raise WeightSyncError(
                f"weight_sync.transport is {self.name}, {first.address} has {one[0]} tensor-parallel and {one[1]} "
                f"expert-parallel ranks, and {second.address} {other[0]} and {other[1]}: start equal servers, or set "
                f"weight_sync.transport={self.instead}."
            )
        tensor, expert = next(iter(layouts))
        return ServerLayout(len(members), tensor, expert)


def planner(config: RunConfig) -> Callable[[ServerLayout], ReshardPlan]:
    """A function that plans the pushes of a run.

    Args:
        config: the run's configuration.

    Returns:
        From the servers' layout to the plan.
    """
    sizes = read_model_sizes(config.model.path / "config.json")
    trainer = Layout(**{each.name: getattr(config.parallel, each.name) for each in fields(Layout)})
    divisible = config.model.vocab_divisible_by
    return lambda servers: plan_reshard(sizes, trainer, servers, vocab_divisible_by=divisible)
