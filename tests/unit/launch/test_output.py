"""Standard output that closes, fills up or was never open: no process fails, and the text goes on in a log file."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run_program(
    code: str, *arguments: str, stdout: int | None = None, shell: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program that has `keep_output`, `log` (a path) and `say` (prints to both streams and flushes)."""
    head = """
        import logging, os, pathlib, resource, subprocess, sys
        logging.basicConfig(stream=sys.stderr)
        from megacov.launch.output import keep_output, write_now
        log = pathlib.Path(sys.argv[1])
        def say(text):
            print(text, flush=True)
            print(text, file=sys.stderr)
    """
    command = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), *arguments]
    if shell:
        command = ["bash", "-c", f'exec "$@" {shell}', "bash", *command]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False)


@pytest.fixture
def closed_pipe() -> int:
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_closed_pipe_ends_nothing_and_the_text_is_in_the_log(tmp_path: Path, closed_pipe: int) -> None:
    code = """
        keep_output()
        keep_output(log)
        os.dup2(1, 2)
        say("one")
        say("two")
        write_now("three")
        subprocess.run(["sh", "-c", "echo of a child; echo its error >&2"], check=True)
        sys.stdout.write("never flushed")
        sys.exit(75)
    """
    ended = run_program(code, str(tmp_path / "log"), stdout=closed_pipe)
    assert ended.returncode == 75  # and not 120, as after a flush that fails
    lines = (tmp_path / "log").read_text().splitlines()
    assert "closed; it continues here" in lines[0]
    assert sorted(lines[1:]) == sorted(
        ["one", "one", "two", "two", "three", "of a child", "its error", "never flushed"]
    )


@pytest.mark.parametrize("log", ["log", "missing/log"])
def test_without_a_log_the_text_is_dropped(tmp_path: Path, closed_pipe: int, log: str) -> None:
    code = (
        "keep_output(log if 'missing' in str(log) else None)\nprint('x' * 100_000)\nprint('y', flush=True)\nsys.exit(3)"
    )
    ended = run_program(code, str(tmp_path / log), stdout=closed_pipe)
    assert (ended.returncode, ended.stderr) == (3, "")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_drops_text_until_there_is_room(tmp_path: Path) -> None:
    code = """
        keep_output()
        free = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, free[1]))
        print("before the disk is full", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
        print("afterwards", flush=True)
    """
    with (tmp_path / "output").open("wb") as output:
        ended = run_program(code, str(tmp_path / "log"), stdout=output.fileno())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "output").read_text() == "before tafterwards\n"


def test_streams_that_were_closed_at_the_start_do_not_become_other_files(tmp_path: Path) -> None:
    code = """
        keep_output()
        file = open(log, "w")
        say("shown to nobody")
        os.write(1, b"by a library")
        os.write(2, b"by a library")
        print(file.fileno(), file=file, flush=True)
    """
    ended = run_program(code, str(tmp_path / "log"), shell=">&- 2>&-")
    assert ended.returncode == 0
    assert int((tmp_path / "log").read_text()) > 2


def test_a_verb_whose_output_closes_ends_with_its_own_code(closed_pipe: int) -> None:
    for arguments, code in ((["--help"], 0), (["schema"], 0), (["check", "nowhere.yaml"], 2)):
        ended = subprocess.run(
            [sys.executable, "-m", "megacov", *arguments],
            cwd=ROOT,
            stdout=closed_pipe,
            stderr=closed_pipe,
            timeout=60,
            check=False,
        )
        assert ended.returncode == code


def test_every_process_of_a_run_keeps_its_output() -> None:
    found = []
    for folder in ("launch", "trainer", "rewards", "embedded_server", "cli"):
        for path in (ROOT / "megacov" / folder).rglob("*.py"):
            text = path.read_text()
            is_program = '__name__ == "__main__"' in text or path.name == "main.py"
            found += [path.name] if is_program else []
            assert not is_program or "    keep_output()\n" in text, path
    assert {"main.py", "node_ranks.py", "supervise.py"} <= set(found)
