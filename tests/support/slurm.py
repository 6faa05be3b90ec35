"""A SLURM cluster of several nodes inside this machine, each with its own network, host name and processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

ROOT = Path(__file__).parents[2]
RIG = ROOT / "tests" / "rigs" / "slurm" / "cluster.sh"
DEADLINE_S = 240


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster, whose state is in a folder."""

    folder: Path
    nodes: int

    def _rig(self, *words: str, deadline_s: float = 60) -> subprocess.CompletedProcess[str]:
        place = {"SLURMRIG": str(self.folder), "NODES": str(self.nodes), "PYTHONPATH": str(ROOT)}
        environment = os.environ | place | {"OMP_NUM_THREADS": "1"}
        # Daemons keep what they inherit: a pipe would not end with the command that starts them.
        with (self.folder / "said").open("w+") as said, (self.folder / "complained").open("w+") as complained:
            ended = subprocess.run(
                ["bash", str(RIG), *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complained,
                timeout=deadline_s,
                cwd=ROOT,
                check=False,
            )
            said.seek(0), complained.seek(0)
            return subprocess.CompletedProcess(ended.args, ended.returncode, said.read(), complained.read())

    def do(self, *words: str) -> None:
        """Something to the cluster itself, as in start or stop."""
        done = self._rig(*words)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *command: str, deadline_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A command on its login node."""
        return self._rig("run", *command, deadline_s=deadline_s)

    def megacov(self, *arguments: str, deadline_s: float = 60) -> subprocess.CompletedProcess[str]:
        """`megacov` on its login node."""
        return self.run(sys.executable, "-m", "megacov", *arguments, deadline_s=deadline_s)

    def wait(self, job: str, states: Sequence[str]) -> str:
        """Until the job is in one of the states; returns what SLURM says of it."""
        shown = ""

        def is_there() -> bool:
            nonlocal shown
            shown = self.run("scontrol", "show", "job", "--oneliner", job).stdout
            return any(f"JobState={state} " in shown for state in states)

        self.wait_for(is_there, f"job {job} in {' or '.join(states)}", seen=lambda: shown)
        return shown

    def wait_for(self, is_there: Callable[[], bool], what: str, *, seen: Callable[[], str] = str) -> None:
        """Until something is there; a failure tells what was seen last."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_there():
            assert time.monotonic() < deadline, f"no {what} in time: {seen()}"
            time.sleep(0.5)


def submit(cluster: SlurmCluster, *arguments: str) -> str:
    """Submit a run; returns the id of its job."""
    submitted = cluster.megacov("launch", *arguments)
    assert submitted.returncode == 0, submitted.stderr
    found = re.search(r"submitted job (\d+)", submitted.stdout)
    assert found is not None
    return found[1]


def find_rank(job: str, number: int) -> psutil.Process:
    """The process of a rank of a job; `job` is what SLURM_JOB_ID is there."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        wanted = {"RANK": str(number), "SLURM_JOB_ID": job}
        if "MEGACOV_HEARTBEAT" in environment and wanted.items() <= environment.items():
            return process
    raise AssertionError(f"job {job} has no rank {number}")


@contextmanager
def slurm_cluster(*, nodes: int) -> Iterator[SlurmCluster]:
    """A cluster that lasts as long as the context."""
    # Not under pytest's folders: SLURM puts sockets here, whose names may have 107 characters.
    with TemporaryDirectory(prefix="slurm_", ignore_cleanup_errors=True) as folder:
        cluster = SlurmCluster(Path(folder), nodes)
        try:
            cluster.do("start")
            yield cluster
        finally:
            cluster.do("stop")
