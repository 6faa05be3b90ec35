"""The transports of weights to rollout servers: what each needs and can do, readable without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PauseMode = Literal["abort", "retract", "in_place"]
"""The fate of running requests while weights are replaced: the server ends them, recomputes their keys and values
afterwards, or keeps their keys and values."""

Verification = Literal["none", "version", "checksums"]
"""The check before servers resume: nothing, the version that each reports, or also that all hold the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportTraits:
    """Needs and abilities of a transport.

    implementation: module:class of the `WeightTransport`; only the trainer imports it.
    summary: one or two sentences for the description of weight_sync.transport.
    in_buckets: it sends messages of weight_sync.bucket_bytes, within weight_sync.timeout_s each, while all ranks wait.
    keeps_copy: it leaves a copy of the newest weights, so a lost server can get them between two pushes.
    tensor_parallel_only: it reaches tensor-parallel ranks, but neither data-parallel copies nor pipeline stages.
    loopback_only: servers must listen on the loopback of rank 0's machine.
    one_machine: all ranks of the trainer must be on that machine.
    needs_flattened_buckets: servers must take many tensors as one message.
    servers_call_back: servers connect to rank 0 at weight_sync.host.
    needs_gpu_per_rank: no two of its ranks may share a GPU.
    embedded_server: the embedded server supports it.
    loader: custom weight loader, as module.function, by which the ranks of a server describe their shards and take them
        from the ranks of the trainer. Servers must have been started with it. Nothing is gathered.
    tried_versions: versions of SGLang on which the loader has run; None where any that megacov talks to will do.
    """

    implementation: str
    summary: str
    in_buckets: bool = False
    keeps_copy: bool = False
    tensor_parallel_only: bool = False
    loopback_only: bool = False
    one_machine: bool = False
    needs_flattened_buckets: bool = False
    servers_call_back: bool = False
    needs_gpu_per_rank: bool = False
    embedded_server: bool = False
    loader: str | None = None
    tried_versions: tuple[str, ...] | None = None


TRANSPORTS: dict[str, TransportTraits] = {
    "disk": TransportTraits(
        implementation="megacov.weight_sync.disk:DiskTransport",
        summary="safetensors in a folder that trainer and servers both see.",
        keeps_copy=True,
        embedded_server=True,
    ),
    "broadcast": TransportTraits(
        implementation="megacov.weight_sync.broadcast:BroadcastTransport",
        summary="a process group of rank 0 and all servers.",
        in_buckets=True,
        tensor_parallel_only=True,
        needs_flattened_buckets=True,
        servers_call_back=True,
        needs_gpu_per_rank=True,  # NCCL refuses two ranks on one GPU
    ),
    "reshard": TransportTraits(
        implementation="megacov.weight_sync.reshard:ReshardTransport",
        summary="each rank of the trainer sends its shards straight to the ranks of servers that need them, by a "
        "loader with which the servers were started.",
        in_buckets=True,
        tensor_parallel_only=True,
        servers_call_back=True,
        needs_gpu_per_rank=True,
        loader="megacov_receiver.receive",
        tried_versions=("0.5.23",),
    ),
    "ipc": TransportTraits(
        implementation="megacov.weight_sync.tensors:TensorTransport",
        summary="servers on rank 0's machine read its GPU's memory; on the CPU the requests hold the bytes.",
        in_buckets=True,
        tensor_parallel_only=True,
        loopback_only=True,  # its messages are pickles
    ),
    "ipc_shards": TransportTraits(
        implementation="megacov.weight_sync.ipc_shards:IpcShardsTransport",
        summary="as ipc, but each rank of a server gets only its own part, from the ranks of the trainer that hold it.",
        in_buckets=True,
        tensor_parallel_only=True,
        loopback_only=True,
        one_machine=True,
        loader="megacov_receiver.receive",
        tried_versions=("0.5.23",),
    ),
}


def choose_transport(suits: Callable[[TransportTraits], bool]) -> str:
    """The end of a sentence that tells which transports to set, such as "weight_sync.transport=disk".

    Args:
        suits: whether a transport with these traits would do.

    Returns:
        The setting, with every transport that would do and does not need servers that were started for it.
    """
    names = [name for name, traits in TRANSPORTS.items() if suits(traits) and traits.loader is None]
    return f"weight_sync.transport={names[0]}" if len(names) == 1 else f"weight_sync.transport to {' or '.join(names)}"
