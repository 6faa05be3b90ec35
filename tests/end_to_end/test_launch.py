"""`megacov launch` on a SLURM cluster that runs inside this machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm import ROOT, SlurmCluster, slurm_cluster

pytestmark = pytest.mark.slurm

RUNS = ROOT / "yaml_configs" / "runs"
READY = sorted(RUNS.glob("qwen*_kl_cov_*.yaml"))  # algorithms do not differ in their jobs
TINY = str(RUNS / "tiny_grpo.yaml")
# Two ranks on two nodes, on the CPU.
TWO_NODES = ("parallel.data=2", "parallel.backend=gloo", "cluster.gpus_per_node=1", "rollout.prompts_per_step=8")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """As many nodes as the largest run asks for."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=16) as running:
        yield running


def test_slurm_takes_every_ready_run(cluster: SlurmCluster, tmp_path: Path) -> None:
    assert len(READY) == 5
    for path, *more in [
        *((path, "slurm.heterogeneous=false") for path in READY),
        (READY[0], "slurm.heterogeneous=true"),
    ]:
        rendered = cluster.megacov("launch", str(path), *more, "--dry-run")
        assert rendered.returncode == 0, rendered.stderr
        script = tmp_path / "job.sbatch"
        script.write_text(rendered.stdout)
        tested = cluster.run("sbatch", "--test-only", str(script))
        assert tested.returncode == 0 and "to start at" in tested.stderr, tested.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("slurm.partition=nowhere",), "there is no partition nowhere; there are batch, rollout"),
        (("cluster.nodes=17",), "the job takes 17 nodes and the partition batch has 16"),
    ],
)
def test_what_could_never_start_is_refused(cluster: SlurmCluster, settings: tuple[str, ...], sentence: str) -> None:
    refused = cluster.megacov("launch", str(RUNS / "qwen2.5_32b_kl_cov_16n.yaml"), *settings)
    assert refused.returncode == 2
    assert sentence in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert cluster.run("squeue", "--noheader").stdout == ""


def submit(cluster: SlurmCluster, *arguments: str) -> str:
    """Submit a run; returns the id of its job."""
    submitted = cluster.megacov("launch", *arguments)
    assert submitted.returncode == 0, submitted.stderr
    found = re.search(r"submitted job (\d+)", submitted.stdout)
    assert found is not None
    return found[1]


def test_a_permanent_error_is_not_requeued(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, TINY, *TWO_NODES, f"run.directory={folder}", "rewards.verifier=nowhere:judge")
    shown = cluster.wait(job, ("FAILED", "COMPLETED"))
    assert "JobState=FAILED" in shown and "Restarts=0" in shown and "ExitCode=2:0" in shown
    assert (folder / "logs" / "ended").read_text() == "2\n"


@pytest.mark.slow
def test_a_job_that_is_asked_to_leave_is_requeued_and_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("run.steps=12", "checkpoint.every=1", f"run.directory={folder}")
    job = submit(cluster, TINY, *TWO_NODES, *settings)
    cluster.wait_for(lambda: any(folder.glob("checkpoints/step_*/MANIFEST.json")), "a checkpoint")
    # As SLURM does before the time limit: to the script alone.
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    shown = cluster.wait(job, ("COMPLETED", "FAILED"))
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown
    said = (tmp_path / f"run-{job}.out").read_text()
    assert "ended with 75 and is requeued" in said and "resume on" in said
    assert (folder / "checkpoints" / "step_00000012").is_dir()
    assert [path.name for path in tmp_path.glob("run.*")] == ["run.sbatch"]  # no run was moved aside


@pytest.mark.slow
def test_trainer_and_servers_share_out_the_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    config, folder = tmp_path / "split.yaml", tmp_path / "run"
    config.write_text(f"""
extends: {TINY}
run: {{name: split, steps: 2, directory: {folder}}}
rollout:
  engine: sglang
  addresses_file: servers.txt
  server_command: [{sys.executable}, -m, tests.support.slurm_server]
cluster: {{nodes: 4}}
""")
    job = submit(cluster, str(config), *TWO_NODES)
    shown = cluster.wait(job, ("COMPLETED", "FAILED"))
    logs = folder / "logs" / "latest"
    assert "JobState=COMPLETED" in shown, (tmp_path / f"run-{job}.out").read_text()
    assert len((logs / "servers.txt").read_text().splitlines()) == 2
    assert len({path.stem.rpartition("_")[2] for path in logs.rglob("*_node*.log")}) == 4
    assert not (logs / "servers" / "keys.yaml").exists()
    assert (logs / "servers").stat().st_mode & 0o077 == 0
