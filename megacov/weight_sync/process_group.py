"""The process group over which weights go: this process as rank 0, and every rank of every server."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from torch._C._distributed_c10d import TCPStore
from torch.distributed import destroy_process_group
from torch.distributed.distributed_c10d import (
    Backend,
    PrefixStore,
    _new_process_group_helper,
    _world,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def open_store(host: str, *, world_size: int, timeout_s: float) -> TCPStore:
    """Where the ranks of a weight group meet, on a free port of this machine.

    Args:
        host: address of this machine that the servers reach.
        world_size: this process and all ranks of all servers. [ranks]
        timeout_s: deadline of each look-up.

    Returns:
        The store; its `port` is to be told to the servers.
    """
    with socket.create_server((host, 0)) as free:
        port: int = free.getsockname()[1]
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, world_size, is_master=True, wait_for_workers=False, timeout=timeout)


def join_as_rank_zero(store: TCPStore, *, name: str, backend: str, world_size: int, timeout_s: float) -> ProcessGroup:
    """Join a group apart from whatever groups this process has; returns when all have joined.

    SGLang makes the other side of it in the same way (sglang.srt.utils.common.init_custom_process_group), and the two
    meet under the same prefixes of the store only if both do.

    Args:
        store: from `open_store`.
        name: of the group.
        backend: "gloo" or "nccl".
        world_size: this process and all ranks of all servers. [ranks]
        timeout_s: a broadcast that waits longer for another rank fails.

    Returns:
        The group, in which this process has rank 0.
    """
    group: ProcessGroup
    group, _ = _new_process_group_helper(
        world_size,
        0,
        [],
        Backend(backend),
        PrefixStore(name, store),
        group_name=cast(Any, name),  # a type of its own in newer torch only
        timeout=timedelta(seconds=timeout_s),
        backend_options=None,
    )
    _world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return group


def leave(group: ProcessGroup) -> None:
    """Close the connections of a group, which ends whatever its other ranks still wait for.

    Args:
        group: from `join_as_rank_zero`.
    """
    destroy_process_group(group)
