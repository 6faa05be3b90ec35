"""The process group that carries weights: rank 0 or all ranks of the trainer, and every rank of every server."""

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
    """Open the store where the ranks of a weight group meet, on a free port of this machine.

    Args:
        host: address of this machine that the servers reach.
        world_size: this process and all ranks of all servers. [ranks]
        timeout_s: deadline of each look-up. [s]

    Returns:
        The store; the servers need its `port`.

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


def meet_at(host: str, port: int, *, world_size: int, timeout_s: float) -> TCPStore:
    """Connect to the store that rank 0 has opened; raises RuntimeError (from torch) if it is not there.

    Args:
        host: address of rank 0's machine.
        port: port of the store.
        world_size: as in `open_store`. [ranks]
        timeout_s: deadline of the connection and of each look-up. [s]

    Returns:
        The store.
    """
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, world_size, is_master=False, wait_for_workers=False, timeout=timeout)


def join_group(
    store: TCPStore, *, name: str, backend: str, world_size: int, timeout_s: float, rank: int = 0
) -> ProcessGroup:
    """Join a group beside the process's other groups; returns when all ranks have joined.

    SGLang joins in the same way (sglang.srt.utils.common.init_custom_process_group). Both sides must, or they would not
    meet under the same prefixes of the store.

    Args:
        store: store from `open_store`, or `meet_at`.
        name: name of the group.
        backend: "gloo" or "nccl".
        world_size: ranks of the trainer that take part, and all ranks of all servers. [ranks]
        timeout_s: a message that waits longer for another rank fails. [s]
        rank: rank of this process in the group.

    Returns:
        The group.
    """
    group: ProcessGroup
    group, _ = _new_process_group_helper(
        world_size,
        rank,
        [],
        Backend(backend),
        PrefixStore(name, store),
        group_name=cast(Any, name),  # newer versions of torch have a type for it
        timeout=timedelta(seconds=timeout_s),
        backend_options=None,
    )
    _world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return group


def broadcast_as_rank_zero(data: Tensor, group: ProcessGroup) -> None:
    """Send to all other ranks, and wait until it is done; NCCL's own wait would block only its stream.

    Args:
        data: any tensor on the group's device.
        group: group from `join_group`, in which this process has rank 0.

    Raises:
        RuntimeError: the data did not reach all ranks (from torch).
    """
    if data.is_cuda:
        torch.cuda.set_device(data.device)  # each thread has its own current device
    work = broadcast(data, 0, group=group, async_op=True)
    assert work is not None
    while not work.is_completed():
        time.sleep(_POLL_S)
    work.wait()


def leave(group: ProcessGroup, *, backend: str) -> None:
    """Close the connections of a group, which ends every wait of its ranks."""
    if backend == "nccl":
        _abort_process_group(group)  # destroying it would wait for pending work, and so for dead ranks
    else:
        destroy_process_group(group)
