"""Whether a rollout server can do what a run asks of it."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from megacov.config import RunConfig
from megacov.config.addresses import is_loopback
from megacov.rollout import Capabilities, UnusableServerError, refuse_unsafe, version_warning


def check_server(config: RunConfig, capabilities: Capabilities, *, address: str, is_own: bool) -> None:
    """Refuse a server that cannot be used, and warn of one that should not be.

    Args:
        config: of the run.
        capabilities: of the server.
        address: of the server.
        is_own: whether the trainer has started it.

    Raises:
        UnusableServerError: it cannot be used.
    """
    if is_own:
        refuse_unsafe(capabilities.version, server=address)
    warning = version_warning(capabilities.version, server=address)
    if warning is not None:
        print(f"megacov: {warning}", flush=True)
    why = _why_weights_cannot_come(config, capabilities, address)
    if why is not None:
        raise UnusableServerError(why)
    if config.rollout.colocated and not capabilities.memory_saver:
        raise UnusableServerError(
            f"rollout.colocated is true and {address} cannot give its memory back: start it with --enable-memory-saver "
            "on a GPU (with the package torch_memory_saver), or set rollout.colocated=false."
        )


def _why_weights_cannot_come(config: RunConfig, capabilities: Capabilities, address: str) -> str | None:
    sync = config.weight_sync
    if sync.transport == "disk":
        return None
    if capabilities.other_parallel > 1:
        return (
            f"{address} has {capabilities.other_parallel} data-parallel copies or pipeline stages, and "
            f"weight_sync.transport is {sync.transport}, which reaches tensor-parallel ranks only: start one server "
            "for each copy, or set weight_sync.transport=disk."
        )
    host = urlsplit(address).hostname or ""
    if sync.transport == "ipc":
        if is_loopback(host):
            return None
        return (
            f"weight_sync.transport is ipc and {address} is not on the loopback of this machine: start the servers on "
            "rollout.host=127.0.0.1, or set weight_sync.transport=broadcast."
        )
    if not capabilities.flattened_buckets:
        return (
            f"weight_sync.transport is broadcast and {address} runs SGLang {capabilities.version}, which takes tensors "
            "only one by one: install 0.5.6 or newer, or set weight_sync.transport=disk."
        )
    if is_loopback(sync.host) and not _is_of_this_machine(host):
        return (
            f"weight_sync.transport is broadcast, weight_sync.host is {sync.host}, and {address} is on another "
            "machine, which would look for the trainer on itself: set weight_sync.host to the private address of "
            "rank 0's machine."
        )
    return None


def _is_of_this_machine(host: str) -> bool:
    """Whether a socket can be bound to it; nothing is sent."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True
