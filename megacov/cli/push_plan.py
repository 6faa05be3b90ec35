"""What a push of weights will cost: bytes, messages and staging memory."""

from __future__ import annotations

from collections.abc import Iterator

from megacov.cli.check_plan import GIB, RunPlan
from megacov.plan import total_parameters
from megacov.plan.reshard import plan_reshard
from megacov.plan.reshard_traffic import push_traffic
from megacov.plan.weight_parts import ServerLayout


def push_rows(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """Rows of a table: name, value and remark.

    Args:
        plan: of a run.

    Yields:
        What the servers get whole, and what they would get from shard to shard; nothing if no SGLang server is known,
        or if servers have data-parallel copies or pipeline stages.
    """
    request, number, config = plan.request, plan.placement.servers, plan.config
    if request is None or request.copies > 1 or number == 0:
        return
    servers, settings = ServerLayout(number, request.tensor, request.expert), plan.settings
    found = push_traffic(
        plan_reshard(plan.sizes, plan.layout, servers, vocab_divisible_by=settings.vocab_divisible_by),
        value_bytes=settings.value_bytes,
        bucket_bytes=config.weight_sync.bucket_bytes,
    )
    gpus = f"each of {servers.ranks} GPUs of servers"
    whole = total_parameters(plan.sizes) * settings.value_bytes
    yield "all weights", _gib(whole), f"to {gpus} by a transport that gathers, such as broadcast"
    yield "shard to shard", _gib(found.received), f"to {gpus}: its own part, from {found.peers} trainer ranks at most"
    yield "busiest sender", _gib(found.sent), f"of {found.senders} ranks of the trainer that send; none gathers"
    bucket = config.weight_sync.bucket_bytes / 2**20
    yield "messages", f"{found.messages:,}", f"at least, from shard to shard; of up to {bucket:,.0f} MiB (bucket_bytes)"
    yield "staging, trainer", _gib(found.sender_staging), "of a GPU: one buffer is packed while another is under way"
    yield "staging, server", _gib(found.receiver_staging), "of a GPU: one buffer is unpacked while another is under way"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB"
