"""A run on a SLURM cluster inside this machine, and what clusters do to it: the same weights come out, bit for bit."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.faults import final_weights
from tests.support.slurm import SlurmCluster, find_rank, slurm_cluster, submit

pytestmark = [pytest.mark.slurm, pytest.mark.dist]

TINY = Path("yaml_configs/runs/tiny_grpo.yaml").absolute()
STEPS = 80  # SLURM looks at time limits twice a minute
# Two ranks, on two nodes where there are nodes.
SETTINGS = (
    f"run.steps={STEPS}",
    "run.deterministic=true",
    "checkpoint.every=2",
    "checkpoint.grace_s=20",
    "parallel.data=2",
    "parallel.backend=gloo",
    "parallel.timeout_s=30.0",
    "rollout.prompts_per_step=8",
    "cluster.gpus_per_node=1",
    "slurm.signal_lead_s=90",
)
SLOW_LINK = "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "10mbit", "burst", "32kbit", "latency", "400ms"


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """Four nodes."""
    with slurm_cluster(nodes=4) as running:
        yield running


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    """Puts right what a test does to the cluster."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the same run, left alone."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    log = folder.with_suffix(".log")
    ended = run("train", str(TINY), *SETTINGS, f"run.directory={folder}", log=log, deadline_s=600)
    assert ended.code == 0, ended.output
    return final_weights(folder, STEPS)


class Job:
    """A job on the cluster and the folder of its run."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.number = submit(cluster, str(TINY), *SETTINGS, f"run.directory={folder}")

    @property
    def said(self) -> str:
        """The output of its script so far."""
        path = Path(f"{self.folder}-{self.number}.out")
        return path.read_text() if path.exists() else ""

    def saves(self) -> int:
        """Newest step with a checkpoint."""
        found = self.folder.glob("checkpoints/step_*/MANIFEST.json")
        return max((int(path.parent.name.removeprefix("step_")) for path in found), default=0)

    def trainers(self, restart: int) -> dict[str, Path]:
        """Logs of the trainer's nodes in a start of the job, in the order of their ranks."""
        folder = self.folder / "logs" / f"slurm_{self.number}_{restart}"
        return {path.stem.removeprefix("trainer_"): path for path in sorted(folder.glob("trainer_*.log"))}

    def wait_for_steps(self, *, restart: int) -> list[str]:
        """Until this start of the job has saved two steps; returns the nodes of its ranks."""
        self.cluster.wait_for(lambda: len(self.trainers(restart)) == 2, f"restart {restart}")
        before = self.saves()
        assert before < STEPS - 60, "the run is too short for what is to happen to it"
        self.cluster.wait_for(lambda: self.saves() >= before + 2, f"steps of restart {restart}")
        return list(self.trainers(restart))


def test_a_server_that_is_lost_is_started_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    config, folder = tmp_path / "split.yaml", tmp_path / "run"
    config.write_text(f"""
extends: {TINY}
run: {{name: split, steps: 2000, directory: {folder}}}
rollout:
  engine: sglang
  addresses_file: servers.txt
  server_command: [{sys.executable}, -m, tests.support.slurm_server]
cluster: {{nodes: 4, gpus_per_node: 1}}
parallel: {{data: 2, backend: gloo}}
""")
    job = submit(cluster, str(config), "rollout.prompts_per_step=8", "slurm.least_all_reduce=1e-3")
    logs, said = folder / "logs" / "latest", tmp_path / f"run-{job}.out"
    trainer = logs / "trainer_node0.log"
    cluster.wait_for(lambda: trainer.exists() and "step 3/" in trainer.read_text(), "step 3")
    steps = dict(line.split() for line in cluster.run("squeue", "--steps", "-h", "-o", "%j %i").stdout.splitlines())
    cluster.run("scancel", "--signal=KILL", steps["server_1"])
    cluster.wait_for(lambda: "serves with the current weights" in trainer.read_text(), "the server started again")
    assert "server 1 has ended and is started again" in said.read_text()
    assert "a rollout server is lost" in trainer.read_text()
    assert "Restarts=0" in cluster.run("scontrol", "show", "job", str(job)).stdout
    cluster.run("scancel", "--signal=TERM", steps["trainer"])
    cluster.wait_for(lambda: "ended with 75 and is requeued" in said.read_text(), "a save and a good end")
    cluster.run("scancel", str(job))
    assert "megacov: preflight: 4 nodes are good" in said.read_text()
    assert re.search(r"an all-reduce of 8 MiB over 2 ranks: [0-9.e+-]+ GB/s a link", said.read_text())
    assert len((logs / "servers.txt").read_text().splitlines()) == 2
    assert len({path.stem.rpartition("_")[2] for path in logs.rglob("*_node*.log")}) == 4
    assert not (logs / "servers" / "keys.yaml").exists()
    assert (logs / "servers").stat().st_mode & 0o077 == 0


def test_a_run_survives_what_clusters_do(
    cluster: SlurmCluster, undo: ExitStack, tmp_path: Path, reference: bytes
) -> None:
    folder = tmp_path / "run"
    # node1 cannot write to the file system of the run.
    cluster.do("on", "node1", "mount", "--bind", "-o", "ro", str(tmp_path), str(tmp_path))
    undo.callback(cluster.do, "on", "node1", "umount", str(tmp_path))
    job = Job(cluster, folder)

    nodes = job.wait_for_steps(restart=1)
    assert "megacov: preflight: node1 is bad" in job.said and "ended with 11 and is requeued" in job.said
    assert "node1" not in nodes

    lost = nodes[1]
    cluster.do("fail", lost)  # power off
    undo.callback(cluster.do, "restore", lost)
    nodes = job.wait_for_steps(restart=2)
    assert "megacov: preflight: 2 nodes are good" in job.said

    find_rank(job.number, 1).send_signal(signal.SIGSTOP)
    job.wait_for_steps(restart=3)
    told = job.trainers(2)[nodes[1]].read_text()
    assert re.search(r"rank 1 has (not run|been in \w+) for \d+ s and counts as hanging", told)
    assert "most recent call first" in told
    assert "ended with 8 and is requeued" in job.said

    cluster.run("scontrol", "update", f"JobId={job.number}", "EndTime=now+80")  # SLURM's signal is due 90 s before
    cluster.wait_for(lambda: "ended with 75 and is requeued" in job.said, "end by the time limit")
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")  # else the next start is as short
    shown = cluster.wait(job.number, ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL"))
    assert "JobState=COMPLETED" in shown and "Restarts=4" in shown, job.said
    assert job.said.count("ended with 75") == 1
    assert final_weights(folder, STEPS) == reference


@pytest.mark.slow
def test_a_node_with_a_slow_link_is_found_by_its_neighbours(
    cluster: SlurmCluster, undo: ExitStack, tmp_path: Path
) -> None:
    slow = "node1"
    cluster.do("on", slow, *SLOW_LINK)
    undo.callback(cluster.do, "on", slow, "tc", "qdisc", "del", "dev", "eth0", "root")
    cluster.run("scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=spare")
    settings = (f"run.directory={tmp_path / 'run'}", "run.steps=2", "parallel.data=3", "rollout.prompts_per_step=12")
    job = submit(cluster, str(TINY), *SETTINGS, *settings, "slurm.least_all_reduce=0.02")
    said = tmp_path / f"run-{job}.out"
    cluster.wait_for(lambda: said.exists() and "is requeued" in said.read_text(), "requeue")
    cluster.run("scontrol", "update", "NodeName=node3", "State=RESUME")
    shown = cluster.wait(job, ("COMPLETED", "FAILED"))
    assert f"preflight: {slow} fail with both neighbours" in said.read_text()
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown and f"ExcNodeList={slow} " in shown, said.read_text()
