"""Children end when their parent stops them, and when their parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacov.launch.process import stop_processes
from tests.support.processes import is_running, read_pids, wait_until

ROOT = Path(__file__).parents[3]
ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a signal of the Linux kernel")
NO_KERNEL_GUARD = "import sys; sys.platform = 'other'\n"


def test_stopping_asks_first_and_then_kills(tmp_path):
    waits = (
        f"import os, pathlib, signal, time\npathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\ntime.sleep(600)"
    )
    deaf = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{waits}"
    polite, stubborn, bystander = (subprocess.Popen([sys.executable, "-c", code]) for code in (waits, deaf, waits))
    try:
        read_pids(tmp_path, 3)
        started = time.monotonic()
        stop_processes([polite, stubborn], grace_s=0.5)
        assert time.monotonic() - started >= 0.5
        assert polite.returncode == -signal.SIGTERM
        assert stubborn.returncode == -signal.SIGKILL
        assert bystander.poll() is None
    finally:
        for process in (polite, stubborn, bystander):
            process.kill()
            process.wait()


def test_stopping_what_has_ended_is_quick():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    started = time.monotonic()
    stop_processes([process], grace_s=60.0)
    assert time.monotonic() - started < 5.0
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("setting", "poll_s"),
    [pytest.param("", 600.0, id="kernel", marks=ONLY_LINUX), pytest.param(NO_KERNEL_GUARD, 0.05, id="thread")],
)
def test_each_guard_alone_ends_a_child_with_its_killed_parent(tmp_path, setting, poll_s):
    child = (
        f"{setting}import os, pathlib, signal, time\n"
        "from megacov.launch.process import die_with_parent\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"die_with_parent(int(os.environ['PARENT']), poll_s={poll_s})\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "time.sleep(600)"
    )
    parent_code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], env={{**os.environ, 'PARENT': str(os.getpid())}})\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT)
    (pid,) = read_pids(tmp_path, 1)
    assert is_running(pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(pid))


def test_a_child_that_comes_too_late_ends_at_once():
    code = f"from megacov.launch.process import die_with_parent\ndie_with_parent({os.getpid()} + 1)\nprint('lived')"
    late = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30.0, check=False)
    assert late.returncode == -signal.SIGKILL
    assert late.stdout == b""
