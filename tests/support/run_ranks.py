"""Run a function on several gloo ranks of this machine and return what every rank returned.

Ranks meet through a file, not a port, so tests cannot take each other's address. They are forked from a process that
has all imports done, because importing takes longer than most tests. A rank that fails writes down when and why: the
others fail a little later for lack of it, and the earliest error is the one worth showing.
"""

from __future__ import annotations

import importlib
import multiprocessing.connection
import os
import pickle
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.forked import PRELOAD, context, start_fork_server

# A rank that waits longer than this in a collective has been left alone by the others.
COLLECTIVE_TIMEOUT_S = 60
# All cases together; more than this means a rank that neither works nor waits for another.
DEADLINE_S = 300


def run_ranks(function: Callable[..., Any], *args: Any, world_size: int) -> list[Any]:
    """Call function(*args) on every rank of a new world.

    Args:
        function: at the top level of an importable module; finds its rank and groups through torch.distributed.
        *args: picklable, the same for every rank.
        world_size: number of ranks.

    Returns:
        One result per rank, in rank order.
    """
    return run_cases(function, [args], world_size=world_size)[0]


def run_cases(
    function: Callable[..., Any], cases: Sequence[tuple[Any, ...]], *, world_size: int, deadline_s: float = DEADLINE_S
) -> list[list[Any]]:
    """Call function(*case) for case after case on every rank of one new world, which pays for its start only once.

    Args:
        function: at the top level of an importable module; finds its rank and groups through torch.distributed.
        cases: positional arguments of one call each, picklable, the same for every rank.
        world_size: number of ranks.
        deadline_s: seconds for all cases together.

    Returns:
        results[case][rank].

    Raises:
        AssertionError: if a rank failed, died or did not end; with the traceback of the first that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "work").write_bytes(pickle.dumps((function, list(cases))))
        places = [(rank, world_size, root, os.getpid()) for rank in range(world_size)]
        start_fork_server()
        processes = [context.Process(target=_run_rank, args=place) for place in places]
        try:
            for process in processes:
                process.start()
            _wait(processes, deadline_s)
            _raise_first_error(processes, root, deadline_s)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        by_rank = [pickle.loads((root / f"results_{rank}").read_bytes()) for rank in range(world_size)]
    return [list(results) for results in zip(*by_rank, strict=True)]


def _end_with(pid: int) -> None:
    """A rank's parent is the fork server; when the test process is gone, nobody else would end the rank."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


def _run_rank(rank: int, world_size: int, root: Path, test_pid: int) -> None:
    threading.Thread(target=_end_with, args=(test_pid,), daemon=True).start()
    torch.set_num_threads(1)
    where = "before the first case"
    try:
        importlib.import_module(PRELOAD)  # the fork server keeps silent if this fails
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(root / "store"), world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
        function, cases = pickle.loads((root / "work").read_bytes())
        results = []
        for index, case in enumerate(cases):
            where = f"in case {index}"
            results.append(function(*case))
        where = "after the last case"
        (root / f"results_{rank}").write_bytes(pickle.dumps(results))
        # Nobody leaves while another may still need it.
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 (whatever it was, the parent process raises it)
        report = f"rank {rank} failed first, {where}:\n{traceback.format_exc()}"
        (root / f"error_{time.monotonic_ns():020d}_{rank}").write_text(report)
        raise SystemExit(1) from None


def _wait(processes: Sequence[BaseProcess], deadline_s: float) -> None:
    """Until all have ended well, one has failed, or the deadline has passed."""
    deadline = time.monotonic() + deadline_s
    running = list(processes)
    while running and time.monotonic() < deadline and all(process.exitcode in (None, 0) for process in processes):
        sentinels = [process.sentinel for process in running]
        multiprocessing.connection.wait(sentinels, timeout=deadline - time.monotonic())
        running = [process for process in running if process.is_alive()]


def _raise_first_error(processes: Sequence[BaseProcess], root: Path, deadline_s: float) -> None:
    for rank, process in enumerate(processes):
        if process.exitcode is not None and process.exitcode < 0:
            raise AssertionError(f"rank {rank} was killed by signal {-process.exitcode}")
    errors = sorted(root.glob("error_*"))
    if errors:
        raise AssertionError(errors[0].read_text())
    for rank, process in enumerate(processes):
        if process.exitcode is None:
            raise AssertionError(f"rank {rank} had not ended after {deadline_s:g} s")
        if process.exitcode != 0:
            raise AssertionError(f"rank {rank} ended with exit code {process.exitcode}")
