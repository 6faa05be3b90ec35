"""`megacov` on local ranks of which one fails at a given moment of a save.

    python -m tests.support.fault_rank FAULT RANK STEP train CONFIG ...

The process starts its own ranks; the given rank changes one function of the running program just before it goes on as
the command would, so that what fails is the real thing at a known place.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megacov.launch import rank_from_environment, run_local_ranks

NUM_RANKS = 2
LEAVE_S = 60.0


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(module: Any, name: str, happens: Callable[[], object], is_due: Callable[..., bool]) -> None:
    """Have something happen before the first due call of a function."""
    original = getattr(module, name)
    is_armed = [True]

    def changed(*args: Any, **kwargs: Any) -> Any:
        if is_armed[0] and is_due(*args):
            is_armed[0] = False
            happens()
        return original(*args, **kwargs)

    setattr(module, name, changed)


def _names_step(step: int) -> Callable[..., bool]:
    return lambda *args: any(f"step_{step:08d}" in str(arg) for arg in args)


def _arm(fault: str, step: int) -> None:
    import torch.distributed.checkpoint.filesystem as filesystem

    from megacov.checkpoint import store
    from megacov.megatron import checkpoint
    from megacov.trainer.saving import checkpointing

    of_step = _names_step(step)

    def in_writing(happens: Callable[[], object]) -> None:
        _before(
            filesystem,
            "_write_item",
            happens,
            lambda transforms, stream, *rest: of_step(stream.name) and stream.tell() > 0,
        )

    match fault:
        case "planning":
            _before(checkpointing, "plan_save", _kill, lambda chunks, optimizer, folder: of_step(folder))
        case "writing":
            in_writing(_kill)
        case "recording":
            _before(checkpoint, "record_file", _kill, of_step)
        case "publishing":
            _before(store, "write_manifest", _kill, of_step)
        case "naming":
            _before(os, "rename", _kill, lambda source, target: of_step(source))
        case "pointing":
            _before(
                os, "replace", _kill, lambda source, target: Path(target).name == "latest" and _points_to(source, step)
            )
        case "pruning":
            _before(shutil, "rmtree", _kill, lambda path, **kwargs: "tmp_delete" in str(path))
        case "disk full":
            full = resource.getrlimit(resource.RLIMIT_FSIZE)
            in_writing(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, full[1])))
            _before(checkpointing, "gather", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, full), _limited)
        case "writer dies":
            _before(checkpoint, "record_file", _die_of_memory, of_step)
        case "slow save":
            in_writing(lambda: time.sleep(3.0))
        case "writer hangs":
            in_writing(threading.Event().wait)
        case "rank stops":
            in_writing(lambda: os.kill(os.getpid(), signal.SIGSTOP))
        case _:
            raise ValueError(fault)


def _points_to(path: object, step: int) -> bool:
    return f"step_{step:08d}" in Path(str(path)).read_text()


def _limited(*args: object) -> bool:
    """Whether the writer has met its limit, which the next message reports."""
    del args
    writing = any(thread.name.startswith("save-") for thread in threading.enumerate())
    return not writing and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 4096


def _die_of_memory() -> None:
    raise MemoryError("no memory left for the writer")


def main() -> None:
    """Start the ranks, or be one."""
    fault, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    place = rank_from_environment()
    if place is None:
        command = [sys.executable, "-m", "tests.support.fault_rank", *sys.argv[1:]]
        sys.exit(run_local_ranks(command, num_ranks=NUM_RANKS, leave_s=LEAVE_S))
    if place.rank == rank:
        _arm(fault, step)
    from megacov.cli.main import main as megacov

    sys.argv[1:] = sys.argv[4:]
    megacov()


if __name__ == "__main__":
    main()
