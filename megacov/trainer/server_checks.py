"""Whether a rollout server can do what a run asks of it."""

from __future__ import annotations

from megacov.config import RunConfig
from megacov.errors import RolloutError
from megacov.rollout import Capabilities, refuse_unsafe, version_warning


def check_server(config: RunConfig, capabilities: Capabilities, *, address: str, is_own: bool) -> None:
    """Refuse a server that cannot be used, and warn of one that should not be.

    Args:
        config: of the run.
        capabilities: of the server.
        address: of the server.
        is_own: whether the trainer has started it.

    Raises:
        RolloutError: it cannot be used.
    """
    if is_own:
        refuse_unsafe(capabilities.version, server=address)
    warning = version_warning(capabilities.version, server=address)
    if warning is not None:
        print(f"megacov: {warning}", flush=True)
    transport = config.weight_sync.transport
    if transport != "disk" and capabilities.other_parallel > 1:
        raise RolloutError(
            f"{address} has {capabilities.other_parallel} data-parallel copies or pipeline stages, and "
            f"weight_sync.transport is {transport}, which reaches tensor-parallel ranks only: start one server for "
            "each copy, or set weight_sync.transport=disk."
        )
    if config.rollout.colocated and not capabilities.memory_saver:
        raise RolloutError(
            f"rollout.colocated is true and {address} cannot give its memory back: start it with --enable-memory-saver "
            "on a GPU (with the package torch_memory_saver), or set rollout.colocated=false."
        )
