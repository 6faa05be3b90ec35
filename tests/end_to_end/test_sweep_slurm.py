"""`megacov sweep --slurm` on a cluster inside this machine: submitted once, followed by later calls, failures named."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm import DEADLINE_S, ROOT, SlurmCluster, slurm_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.dist]

BASE = ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml"
SETTINGS = {
    "run.steps": 1,
    "rollout.prompts_per_step": 4,
    "rollout.samples_per_prompt": 4,
    "batch.updates_per_rollout": 1,
    "parallel.backend": "gloo",
    "cluster.gpus_per_node": 1,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(nodes=2) as running:
        yield running


def jobs(cluster: SlurmCluster) -> list[str]:
    """All jobs that the cluster has had, as ARRAY_TASK."""
    return sorted(cluster.run("squeue", "--states=all", "--array", "--noheader", "--format=%i").stdout.split())


def test_arrays_are_submitted_once_and_followed_to_their_end(cluster: SlurmCluster, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    over = {"rewards.verifier": ["sum_pairs", "tests.support.verifiers:not_a_number"]}
    search = {"name": "grid", "over": over}
    sweep = {"name": "tried", "directory": str(tmp_path / "sweep"), "base": str(BASE), "settings": SETTINGS}
    path.write_text(json.dumps({**sweep, "seeds": [3], "search": search}))
    submitted = cluster.megacov("sweep", str(path), "--slurm")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    first = jobs(cluster)
    assert [name.partition("_")[2] for name in first] == ["3", "3"]
    # A call that was killed after sbatch, and before it could note the job, finds it by its script.
    for note in (tmp_path / "sweep" / "jobs").iterdir():
        note.unlink()
    ended = cluster.megacov("sweep", str(path), "--slurm", "--wait", deadline_s=DEADLINE_S)
    assert ended.returncode == 14, ended.stdout + ended.stderr
    assert jobs(cluster) == first
    with (tmp_path / "sweep" / "table.csv").open(newline="") as file:
        rows = [(row["rewards.verifier"], row["seed"], row["state"], row["exit_code"]) for row in csv.DictReader(file)]
    bad = over["rewards.verifier"][1]
    assert rows == [("sum_pairs", "3", "done", "0"), (bad, "3", "failed", "6")]
    assert "failed: " in ended.stdout and "1 run of the sweep failed" in ended.stderr
    # What failed is submitted again when asked for, and nothing else.
    again = cluster.megacov("sweep", str(path), "--slurm", "--retry-failed")
    assert again.returncode == 0, again.stdout + again.stderr
    (new,) = set(jobs(cluster)) - set(first)
    assert new.partition("_")[2] == "3" and f"{bad.rpartition(':')[2]}" in again.stdout
