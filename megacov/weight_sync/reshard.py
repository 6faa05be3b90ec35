"""Weights from shard to shard: each rank of the trainer sends its shards to the ranks of servers that need them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megacov.config import RunConfig
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import PushTimes, RunOnLoop, ServersFailedError
from megacov.weight_sync.meeting import Meeting, in_thread
from megacov.weight_sync.session import SessionSettings
from megacov.weight_sync.shard_group import GRACE_S, HandOver, ShardGroup
from megacov.weight_sync.shard_rounds import Description, ShardPlan, schedule
from megacov.weight_sync.shard_sender import OwnShards
from megacov.weight_sync.shard_transport import ShardTransport, planner

if TYPE_CHECKING:
    from torch import Tensor


class ReshardTransport(ShardTransport[ShardPlan]):
    """Sends shards over the group of all ranks of the trainer and of the servers. Nothing is gathered.

    In a push, nobody sends or writes before all ranks have agreed, and the servers take the new version only after all
    have ended well. Each rank holds two buffers of `bucket_bytes`.
    """

    name, instead = "reshard", "broadcast"

    @classmethod
    def from_config(
        cls, config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
    ) -> ReshardTransport:
        """Meet the servers at weight_sync.host; see `WeightTransport.from_config`."""
        return cls(
            clients,
            run=run,
            settings=SessionSettings.from_section(config.weight_sync),
            meeting=Meeting.of_this_rank(config.weight_sync.host),
            make_plan=planner(config),
        )

    def _share_out(self, plan: ShardPlan, joined: ShardGroup, layouts: Mapping[int, Description]) -> None:
        places = {
            (server, receiver): joined.first_rank(server) + receiver
            for server, member in enumerate(joined.members)
            for receiver in range(member.weights.num_ranks)
        }
        rounds = schedule(
            plan.pieces(),
            {place: layouts[rank] for place, rank in places.items()},
            group_rank=lambda server, receiver: places[server, receiver],
            max_bytes=self._settings.bucket_bytes,
        )
        for rank in range(joined.world_size):
            self._sender.board.write(f"plan/{rank}", rounds.get(rank, []))
        of_first_server = range(joined.first_rank(0), joined.first_rank(1))
        joined.num_bytes = sum(
            part.num_bytes
            for rank in of_first_server
            for messages in rounds[rank]
            for _, parts in messages
            for part in parts
        )

    def _hand_over(self, named_tensors: Iterable[tuple[str, Tensor]], times: PushTimes) -> None:
        assert isinstance(named_tensors, OwnShards) and self._joined is not None
        joined, shards = self._joined, named_tensors
        with times.phase("transfer"):
            self._run(self._keep_pause_short())
            with_sums = self._always_sums or not joined.is_verified
            hand_over = self._begin("take", joined, with_sums=with_sums)
            order: dict[str, Any] = {"number": hand_over.number, "with_sums": with_sums}
            order["timeout_s"] = self._timeout_s + GRACE_S  # as the receivers
            shards.lead({"do": "send", **order})
            self._run(self._transfer(hand_over, lambda: self._sender.send(shards.tensors, **order)))
            joined.is_verified = joined.is_verified or with_sums
        times.num_bytes = joined.num_bytes

    async def _transfer(self, hand_over: HandOver, send: Callable[[], None]) -> None:
        taking = asyncio.gather(*(self._take(client, hand_over) for client in self._members))
        sending, watching = in_thread(send), asyncio.ensure_future(hand_over.watch())
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(taking, sending, watching)
        except TimeoutError as error:
            raise hand_over.late() from error
        finally:
            hand_over.stop()
            for each in (taking, sending, watching):
                each.cancel()
        hand_over.compare_sums()
        hand_over.clear()

    async def _take(self, client: RolloutClient, hand_over: HandOver) -> None:
        """As soon as one server fails, nobody waits for the others, which may wait for it."""
        try:
            await self._run_receiver(client, hand_over)
        except RolloutError as error:
            raise ServersFailedError({client: error}) from error
