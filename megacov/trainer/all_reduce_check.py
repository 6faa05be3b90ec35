"""Checks the network between ranks and measures it: `python -m megacov.trainer.all_reduce_check BACKEND MIB GB_PER_S`.

Every rank of a job runs it before training, under `megacov.launch.node_ranks`; rank 0 prints the result.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from megacov.errors import RankError
from megacov.launch.output import keep_output
from megacov.launch.process import PARENT_PID_VARIABLE, die_with_parent
from megacov.launch.rank_environment import rank_from_environment
from megacov.parallel.collectives import all_reduce_max

# Ranks may start minutes apart, because all nodes load torch from a shared file system.
_TIMEOUT = timedelta(seconds=300)
_REPEATS = 5


def bus_bandwidth(mib: int, device: torch.device) -> float:
    """Time an all-reduce of a tensor over all ranks of the default group.

    Collectives: world: SUM of [mib x 2**18] float32, six times; MAX of a time.

    Args:
        mib: size of the tensor. [MiB]
        device: device of the tensor.

    Returns:
        Bandwidth of each link as nccl-tests defines it: 2 (n - 1) / n of the tensor over the median time of the slowest
        rank; equal on all ranks. [GB/s]

    Raises:
        RankError: the sum is wrong.
    """
    world_size = dist.get_world_size()
    times = []
    for repeat in range(_REPEATS + 1):
        tensor = torch.full((mib * 2**18,), float(dist.get_rank() + 1), device=device)
        _wait_for(device)
        start = time.perf_counter()
        dist.all_reduce(tensor)
        _wait_for(device)
        if repeat > 0:  # the first one sets up connections
            times.append(time.perf_counter() - start)
        if not bool((tensor == world_size * (world_size + 1) / 2).all()):
            raise RankError(f"rank {dist.get_rank()}: an all-reduce over {world_size} ranks gives wrong sums.")
    median = torch.tensor(sorted(times)[_REPEATS // 2], device=device)
    median = all_reduce_max(median, group=dist.group.WORLD)
    return 2 * (world_size - 1) / world_size * mib * 2**20 / float(median) / 1e9


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str]) -> int:
    """Run one rank of the check.

    Args:
        arguments: backend, size in MiB, and required bandwidth in GB/s.

    Returns:
        Exit code: 0, or that of RankError if a rank cannot be reached, sums are wrong, or the bandwidth is too low.
    """
    backend, mib, required = arguments
    die_with_parent(int(os.environ[PARENT_PID_VARIABLE]))
    place = rank_from_environment()
    assert place is not None
    torch.set_num_threads(1)
    device = torch.device("cuda", place.local_rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a lost peer then raises instead of killing the process
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend, timeout=_TIMEOUT, rank=place.rank, world_size=place.world_size, init_method=place.init_method
        )
        bandwidth = bus_bandwidth(int(mib), device)
    except (RuntimeError, RankError) as error:
        print(f"megacov: rank {place.rank}: {str(error).splitlines()[0]}", flush=True)
        return RankError.exit_code
    if place.rank == 0:
        print(
            f"megacov: an all-reduce of {mib} MiB over {place.world_size} ranks: {bandwidth:.3g} GB/s a link",
            flush=True,
        )
    dist.destroy_process_group()
    return RankError.exit_code if bandwidth < float(required) else 0


if __name__ == "__main__":
    keep_output()
    sys.exit(main(sys.argv[1:]))
