"""Real TensorBoard servers, asked over HTTP as a browser asks them: the default data server and the one in Python.

`python -m tests.support.tensorboard_servers FOLDER` prints the address of each and serves until its input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
READERS = {"data server": "--load_fast=true", "--load_fast=false": "--load_fast=false"}
_DEADLINE_S = 60.0


@dataclass(frozen=True)
class TensorBoards:
    """Both servers on one folder of runs. addresses: URL by reader."""

    addresses: dict[str, str]

    def get(self, reader: str, path: str, **query: str) -> Any:
        """The JSON that a server answers; None where it knows no such thing (yet)."""
        response = httpx.get(f"{self.addresses[reader]}data/{path}", params=query, timeout=_DEADLINE_S)
        return response.json() if response.is_success else None

    def steps(self, reader: str, run: str, tag: str) -> list[int]:
        """Steps of a scalar, in the order in which they are drawn."""
        points = self.get(reader, "plugin/scalars/scalars", run=run, tag=tag) or []
        return [step for _, step, _ in points]

    def wait(self, reader: str, run: str, tag: str, steps: Sequence[int]) -> None:
        """Wait until the server draws these steps, at most a minute; it reloads every second."""
        deadline = time.monotonic() + _DEADLINE_S
        while (found := self.steps(reader, run, tag)) != list(steps):
            assert time.monotonic() < deadline, f"{reader} draws {tag} of {run} at {found}, not at {list(steps)}"
            time.sleep(0.1)


@contextmanager
def serving(folder: Path) -> Iterator[TensorBoards]:
    """Both servers, until the context is left."""
    command = [sys.executable, "-m", __name__, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield TensorBoards(json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(timeout=_DEADLINE_S)


def main(folder: str) -> None:
    """Serve until the input ends."""
    from tensorboard import default, program

    addresses = {}
    for reader, option in READERS.items():
        server = program.TensorBoard(default.get_plugins())
        server.configure(
            ["", "--logdir", folder, "--port", "0", "--host", "127.0.0.1", "--reload_interval", "1", option]
        )
        addresses[reader] = server.launch()
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
