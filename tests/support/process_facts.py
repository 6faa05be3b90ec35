"""Prints what this process was given, as JSON; with the word `child`, after it has started itself once more."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

_HANDLERS = {signal.SIG_DFL: "default", signal.SIG_IGN: "ignored", signal.default_int_handler: "KeyboardInterrupt"}


def facts() -> dict[str, Any]:
    """All that a program may rely on and that differs between a fork and a new process where a fork is made badly."""
    return {
        "argv": sys.argv[1:],
        "main": vars(sys.modules["__main__"])["__name__"],
        "cwd": os.getcwd(),
        "environment": dict(sorted(os.environ.items())),
        "open_files": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],  # the last lists the folder
        "is_session_leader": os.getsid(0) == os.getpid(),
        "handlers": {signal.Signals(each).name: _HANDLERS.get(signal.getsignal(each)) for each in _signals()},
        "blocked_signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "threads": threading.active_count(),
        "limits": [resource.getrlimit(each) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)],
        "input": sys.stdin.read(),
    }


def _signals() -> list[int]:
    return sorted(set(signal.valid_signals()) - set(range(signal.SIGRTMIN, signal.SIGRTMAX + 1)))


def main() -> None:
    """Print the facts of this process, after those of a child and how that ended."""
    if "child" in sys.argv:
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # which no child must inherit
        print("written before the child was started", end=" ")
        command = [sys.executable, "-m", "tests.support.process_facts", "grandchild"]
        with tempfile.TemporaryDirectory() as folder:
            ended = subprocess.run(
                command,
                env={**os.environ, "RANK": "1"},
                input="",
                capture_output=True,
                text=True,
                start_new_session=True,
                check=False,
            )
            print(ended.returncode, ended.stdout, ended.stderr, "folder kept:", os.path.isdir(folder))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(json.dumps(facts()))
    sys.exit("a sentence" if "grandchild" in sys.argv else 7)


if __name__ == "__main__":
    main()
