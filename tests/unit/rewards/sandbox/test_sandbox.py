"""What programs in a sandbox can reach and use up, tried by programs that do no harm elsewhere either."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megacov.rewards.sandbox.sandbox import Sandbox, _launcher
from tests.support.sandboxes import ROOT, needs_sandbox, run_behind, run_program, settings

CHECK = """
from megacov.errors import ConfigError
from megacov.rewards.sandbox.confinement import Limits
from megacov.rewards.sandbox.sandbox import Sandbox, SandboxSettings, check_sandbox
limits = Limits(cpu_s=20, memory_bytes=2**29, file_bytes=2**20, output_bytes=2**20, processes=8, open_files=32)
settings = SandboxSettings(limits=limits, memory_bytes=2**29, wall_s=30)
try:
    check_sandbox(settings)
    source = "import os; print(os.getresuid(), len(os.listdir('.')), os.access(os.__file__, os.W_OK))"
    with Sandbox.start(source, settings, total_s=30) as sandbox:
        print(*sandbox.run({"kind": "main", "input": ""}))
except ConfigError as error:
    print("refused:", error)
"""
VERIFIER = """
from tests.support.sandboxes import run_program
run_program("import time; time.sleep(100)")
"""


@pytest.fixture(autouse=True)
def _can_be_made() -> None:
    needs_sandbox()


def wait_until_empty() -> None:
    """Wait until no sandbox is left; fails after 10 s."""
    launcher = psutil.Process(_launcher().process.pid)
    deadline = time.monotonic() + 10
    while launcher.children(recursive=True):
        assert time.monotonic() < deadline, launcher.children(recursive=True)
        time.sleep(0.01)


def test_a_program_reads_and_prints() -> None:
    assert run_program("print(int(input()) + 1); exit_code = 0", times=2) == [("done", "6\n")] * 2
    assert run_program("import sys; print('x'); sys.exit(3)") == [("failed", "x\n")]
    assert run_program("import threading; threading.Thread(target=lambda: print(input())).start()") == [("done", "5\n")]


def test_nothing_listens_to_a_program_on_this_machine() -> None:
    program = """
        import socket
        try:
            socket.create_connection(("127.0.0.1", {port}), timeout=5)
        except OSError as error:
            print("no connection")
        for family in (16, 40):
            try:
                socket.socket(family, socket.SOCK_DGRAM)
            except OSError as error:
                print(error.errno)
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        socket.create_connection(server.getsockname()).close()
        server.accept()[0].close()
        assert run_program(program.replace("{port}", str(server.getsockname()[1]))) == [
            ("done", "no connection\n97\n97\n")
        ]
        with pytest.raises(TimeoutError):
            server.accept()


def test_files_and_environment_stay_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hidden")
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    program = f"""
        import os
        for path in ({str(secret)!r}, {__file__!r}, "/proc/1/environ", "/etc/passwd"):
            print(os.path.exists(path))
        print(dict(os.environ), os.listdir("."))
        for path in ("/new", "/dev/new", os.path.dirname(os.__file__) + "/new", {str(tmp_path / "new")!r}):
            try:
                open(path, "w")
                print("written", path)
            except OSError:
                pass
        open("own", "w").write("x")
    """
    assert run_program(program, times=2) == [("done", "False\n" * 4 + "{} []\n")] * 2
    assert list(tmp_path.iterdir()) == [secret]


def test_its_folder_is_small() -> None:
    program = """
        from pathlib import Path
        for number in range(8):
            try:
                Path(str(number)).write_bytes(bytes(2**20))
            except OSError:
                print("full at", number)
                break
    """
    [(status, output)] = run_program(program)
    assert status == "done" and output in ("full at 3\n", "full at 4\n")


def test_it_has_no_rights_and_gets_none() -> None:
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(os.getresuid(), os.getresgid(), libc.prctl(39, 0, 0, 0, 0), libc.prctl(3, 0, 0, 0, 0))
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        print(libc.capget(header, data), list(data))
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.shmget(0, 4096, 0o1600))
        print(libc.ptrace(16, 1, 0, 0), libc.memfd_create(b"a", 0))
    """
    rights = "(1000, 1000, 1000) (1000, 1000, 1000) 1 0\n0 [0, 0, 0, 0, 0, 0]\n"
    assert run_program(program) == [("done", f"{rights}-1 -1 -1\n-1 -1\n")]


def test_processes_are_limited_and_do_not_outlive_a_test() -> None:
    program = """
        import os, time
        made = 0
        try:
            for _ in range(200):
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(100)
                made += 1
        except BlockingIOError:
            print(made < 8)
    """
    assert run_program(program, settings(processes=8), times=3) == [("done", "True\n")] * 3
    wait_until_empty()


def test_a_program_cannot_end_what_watches_it() -> None:
    program = """
        import os, signal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
            for pid in (1, os.getppid(), -1):
                try:
                    os.kill(pid, number)
                except OSError:
                    pass
        print("alive")
    """
    assert [status for status, _ in run_program(program, times=2)] == ["done", "done"]


def test_time_and_output_are_limited() -> None:
    assert run_program("while True: pass", settings(cpu_s=1.0))[0][0] == "failed"
    assert run_program("import time; time.sleep(60)", settings(wall_s=0.2), times=2) == [("late", "")] * 2
    assert run_program("while True: print('x' * 1000)") == [("output", "")]
    wait_until_empty()


def test_memory_is_limited() -> None:
    assert run_program("bytearray(2**30)") == [("failed", "")]
    program = """
        import os, time
        [os.fork() for _ in range(2)]
        kept = bytearray(b"x") * (40 * 2**20)
        time.sleep(60)
    """
    start = time.monotonic()
    assert run_program(program, settings(memory_mib=64)) == [("ended", "")]
    assert time.monotonic() - start < 30
    wait_until_empty()


def test_a_sandbox_that_is_left_early_ends_at_once() -> None:
    start = time.monotonic()
    with Sandbox.start("import time; time.sleep(60)", settings(), total_s=0.5) as sandbox:
        assert sandbox.run({"kind": "main", "input": ""}) == ("ended", "")
    wait_until_empty()
    assert time.monotonic() - start < 20


def test_nothing_outlives_a_verifier_that_is_killed() -> None:
    verifier = subprocess.Popen([sys.executable, "-c", VERIFIER], cwd=ROOT)
    try:
        process, deadline, found = psutil.Process(verifier.pid), time.monotonic() + 30, []
        # Launcher, watch, first process and the program.
        while len(found) < 4:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
            found = process.children(recursive=True)
    finally:
        verifier.kill()
        verifier.wait()
    assert psutil.wait_procs(found, timeout=10)[1] == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="util-linux is missing")
def test_it_is_refused_where_it_would_not_hold() -> None:
    without = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    printed = run_behind(("unshare", "-Ur", "sh", "-c", without, "sh"), CHECK)
    assert "refused: a sandbox for programs of responses cannot be made here: making a user namespace failed" in printed


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, and util-linux")
def test_it_needs_no_root() -> None:
    wrapper = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # It starts itself, since setpriv still has root's rights when it starts the first one.
    probe = (
        "import subprocess, sys, megacov.errors; print(subprocess.call([sys.executable, '-c', '']), sys.version[:4])"
    )
    interpreters = (sys.executable, "/usr/bin/python3")
    reachable = [path for path in interpreters if run_behind(wrapper, probe, python=path) in ("0 3.11\n", "0 3.12\n")]
    if not reachable:
        pytest.skip("an ordinary user can read neither this interpreter nor the repository")
    assert run_behind(wrapper, CHECK, python=reachable[0]) == "done (1000, 1000, 1000) 0 False\n\n"
