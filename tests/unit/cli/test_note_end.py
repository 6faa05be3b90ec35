"""The command that started the ranks writes down their exit code, and leaves runs of others alone."""

from __future__ import annotations

import time
from pathlib import Path

from megacov.checkpoint import RunLock
from megacov.cli.train import _note_end
from megacov.monitor.run_end import read_end, write_end


def _code(run: Path) -> int | None:
    end = read_end(run, since=0.0)
    return None if end is None else end.code


def test_the_code_of_our_own_ranks_is_written(tmp_path: Path) -> None:
    started = time.time() - 1.0
    with RunLock(tmp_path):
        pass  # rank 0, which was killed before it could write
    _note_end(tmp_path, 137, started=started)
    assert _code(tmp_path) == 137
    write_end(tmp_path, 8, "rank 0 lost another rank.")
    _note_end(tmp_path, 137, started=started)
    end = read_end(tmp_path, since=started)
    assert end is not None and (end.code, end.reason) == (137, "rank 0 lost another rank.")


def test_a_run_that_our_ranks_never_held_is_left_alone(tmp_path: Path) -> None:
    _note_end(tmp_path, 3, started=time.time())
    assert _code(tmp_path) is None
    started = time.time() - 1.0
    with RunLock(tmp_path):  # of a run that is still at work, and the reason why ours ended with code 3
        _note_end(tmp_path, 3, started=started)
        assert _code(tmp_path) is None
    _note_end(tmp_path, 3, started=time.time() + 1.0)
    assert _code(tmp_path) is None
