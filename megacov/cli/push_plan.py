"""What a push of weights will cost: bytes, messages and staging memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megacov.cli.check_plan import GIB, RunPlan
from megacov.config import RunConfig
from megacov.config.server_rules import (
    colocated_servers_take_turns_with_the_trainer,
    shards_for_requests_are_on_one_machine,
)
from megacov.config.transports import TRANSPORTS
from megacov.plan import total_parameters
from megacov.plan.reshard import plan_reshard
from megacov.plan.reshard_traffic import passed_elements, push_traffic
from megacov.plan.weight_parts import ServerLayout


def push_rows(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """Rows of a table: name, value and remark.

    Args:
        plan: of a run.

    Yields:
        What the servers get whole, and what they get from shard to shard, or would get by the transport that the row
        names; nothing if no SGLang server is known, or if servers have data-parallel copies or pipeline stages.
    """
    request, number, sync = plan.request, plan.placement.servers, plan.config.weight_sync
    if request is None or request.copies > 1 or number == 0:
        return
    servers, settings = ServerLayout(number, request.tensor, request.expert), plan.settings
    sizes, divisible_by = plan.sizes, settings.vocab_divisible_by
    found = push_traffic(
        plan_reshard(sizes, plan.layout, servers, vocab_divisible_by=divisible_by),
        value_bytes=settings.value_bytes,
        bucket_bytes=sync.bucket_bytes,
    )
    gpus = f"each of {servers.ranks} GPUs of servers"
    whole = total_parameters(sizes) * settings.value_bytes
    gathering = "ipc" if plan.config.rollout.colocated else "broadcast"
    yield "all weights", _gib(whole), f"to {gpus} by a transport that gathers, such as {gathering}"
    shards = _transport_of_shards(plan.config)
    if shards is None:
        yield (
            "shard to shard",
            "none",
            "no transport of shards reaches servers on the GPUs of a trainer of many machines",
        )
        return
    line = "" if sync.traits.loader else f" (weight_sync.transport={shards})"
    if TRANSPORTS[shards].one_machine:
        one = plan_reshard(sizes, plan.layout, replace(servers, number=1), vocab_divisible_by=divisible_by)
        own = f"to {gpus}, by requests that name memory of the trainer's ranks{line}"
        yield "own shards", _gib(found.received), own
        passed = passed_elements(one.of_one_replica()) * settings.value_bytes
        yield "passed", _gib(passed), "between ranks of the trainer, once for all servers; none gathers"
        yield "staging, trainer", _gib(3 * sync.bucket_bytes), "of a GPU at most, unless one parameter is larger"
        return
    own = f"to each its own part, from {found.peers} trainer ranks at most{line}"
    yield "shard to shard", _gib(found.received), own
    yield "busiest sender", _gib(found.sent), f"of {found.senders} ranks of the trainer that send; none gathers"
    bucket = sync.bucket_bytes / 2**20
    yield "messages", f"{found.messages:,}", f"at least, from shard to shard; of up to {bucket:,.0f} MiB (bucket_bytes)"
    yield "staging, trainer", _gib(found.sender_staging), "of a GPU: one buffer is packed while another is under way"
    yield "staging, server", _gib(found.receiver_staging), "of a GPU: one buffer is unpacked while another is under way"


def _transport_of_shards(config: RunConfig) -> str | None:
    """The run's own transport, or the first other one from shard to shard that its placement allows."""
    rules = (colocated_servers_take_turns_with_the_trainer, shards_for_requests_are_on_one_machine)
    for name in (config.weight_sync.transport, *TRANSPORTS):
        sync = config.weight_sync.model_copy(update={"transport": name})
        other = config.model_copy(update={"weight_sync": sync})
        if sync.traits.loader is not None and all(rule(other) is None for rule in rules):
            return name
    return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB"
