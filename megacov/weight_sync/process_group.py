"""The process group over which weights go: this process as rank 0, and every rank of every server."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import broadcast, destroy_process_group
from torch.distributed.distributed_c10d import (
    Backend,
    PrefixStore,
    _abort_process_group,
    _new_process_group_helper,
    _world,
)

from megacov.errors import WeightSyncError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_POLL_S = 0.0005


def open_store(host: str, *, world_size: int, timeout_s: float) -> TCPStore:
    """Where the ranks of a weight group meet, on a free port of this machine.

    Args:
        host: address of this machine that the servers reach.
        world_size: this process and all ranks of all servers. [ranks]
        timeout_s: deadline of each look-up.

    Returns:
        The store; its `port` is to be told to the servers.

    Raises:
        WeightSyncError: this machine does not have the address.
    """
    try:
        with socket.create_server((host, 0)) as free:
            port: int = free.getsockname()[1]
    except OSError as error:
        raise WeightSyncError(
            f"weight_sync.host is {host}, where this machine cannot listen ({error}): set an address of its own that "
            "the servers reach."
        ) from error
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


def broadcast_as_rank_zero(data: Tensor, group: ProcessGroup) -> None:
    """Send to all other ranks of a group, to the end: NCCL's own wait would only hold up its stream.

    Args:
        data: what is sent.
        group: from `join_as_rank_zero`.

    Raises:
        RuntimeError: it did not reach all of them; from torch.
    """
    if data.is_cuda:
        torch.cuda.set_device(data.device)  # which is this thread's own setting
    work = broadcast(data, 0, group=group, async_op=True)
    assert work is not None
    while not work.is_completed():
        time.sleep(_POLL_S)
    work.wait()


def leave(group: ProcessGroup, *, backend: str) -> None:
    """Close the connections of a group, which ends whatever its ranks still wait for.

    Args:
        group: from `join_as_rank_zero`.
        backend: of the group.
    """
    if backend == "nccl":
        _abort_process_group(group)  # the other way waits for what is under way, and so for ranks that are gone
    else:
        destroy_process_group(group)
