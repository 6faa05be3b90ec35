"""Jobs of other shapes on a SLURM cluster inside this machine: heterogeneous, an array of seeds, a chain."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import final_weights
from tests.support.slurm import SlurmCluster, find_rank, slurm_cluster, submit

pytestmark = [pytest.mark.slurm, pytest.mark.dist, pytest.mark.slow]

TINY = Path("yaml_configs/runs/tiny_grpo.yaml").absolute()
SMALL = ("run.steps=2", "parallel.backend=gloo", "rollout.prompts_per_step=8", "cluster.gpus_per_node=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(nodes=4) as running:
        yield running


def ended_with(text: str) -> list[str]:
    return re.findall(r"ended with (\d+)", text)


def test_trainer_and_servers_as_components(cluster: SlurmCluster, tmp_path: Path) -> None:
    config, folder = tmp_path / "split.yaml", tmp_path / "run"
    config.write_text(f"""
extends: {TINY}
run: {{name: split, directory: {folder}}}
rollout:
  engine: sglang
  addresses_file: servers.txt
  server_command: [{sys.executable}, -m, tests.support.slurm_server]
cluster: {{nodes: 4}}
slurm: {{heterogeneous: true, server_partition: rollout}}
""")
    job = submit(cluster, str(config), *SMALL, "parallel.data=2")
    shown = cluster.wait(job, ("COMPLETED", "FAILED"))
    said = (tmp_path / f"run-{job}.out").read_text()
    assert "JobState=FAILED" not in shown and "Partition=rollout" in shown, said
    assert "megacov: preflight: 4 nodes are good" in said and ended_with(said) == ["0"]
    logs = folder / "logs" / "latest"
    assert len((logs / "servers.txt").read_text().splitlines()) == 2
    trainers, servers = (
        {path.stem.rpartition("_")[2] for path in logs.glob(pattern)} for pattern in ("trainer_*", "servers/*.log")
    )
    assert len(trainers) == len(servers) == 2 and not trainers & servers


def test_an_array_has_a_run_for_each_seed_and_each_leaves_alone(cluster: SlurmCluster, tmp_path: Path) -> None:
    steps = 20
    settings = (f"run.steps={steps}", "run.deterministic=true", "checkpoint.every=1", "checkpoint.grace_s=20")
    job = submit(cluster, str(TINY), *SMALL, *settings, f"run.directory={tmp_path / 'run'}", "--seeds", "3,5")

    def attempts(seed: int) -> list[str]:
        return [path.name for path in tmp_path.glob(f"run_seed{seed}/logs/slurm_*")]

    def ended() -> list[str]:
        return [path.read_text() for path in tmp_path.glob("run_seed*/logs/ended")]

    # One task has the number of the whole array. It leaves when the other has ended.
    cluster.wait_for(lambda: all(attempts(seed) for seed in (3, 5)), "start of both")
    (leaving,) = (seed for seed in (3, 5) if attempts(seed) == [f"slurm_{job}_0"])
    saved = tmp_path / f"run_seed{leaving}" / "checkpoints"
    cluster.wait_for(lambda: bool(list(saved.glob("step_*/MANIFEST.json"))), "checkpoint")
    rank = find_rank(job, 0)
    rank.suspend()
    cluster.wait_for(lambda: len(ended()) == 1, "end of the other")
    cluster.wait(f"{job}_{8 - leaving}", ("COMPLETED",))
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_{leaving}")
    rank.resume()
    cluster.wait_for(lambda: len(ended()) == 2, "end of both")

    said = (tmp_path / f"run-{job}.out").read_text()
    left, finished = ended_with(said)
    assert left in ("75", "138") and finished == "0", said  # a second signal may meet a rank that has saved and closes
    assert sorted(attempts(leaving)) == [f"slurm_{job}_0", f"slurm_{job}_1"]
    assert len(attempts(8 - leaving)) == 1
    assert "JobState=COMPLETED" in cluster.wait(f"{job}_{8 - leaving}", ("COMPLETED", "PENDING", "RUNNING"))
    weights = [final_weights(tmp_path / f"run_seed{seed}", steps) for seed in (3, 5)]
    assert weights[0] != weights[1]
    assert ended() == ["0\n", "0\n"]


def test_later_jobs_of_a_chain_do_nothing_once_the_run_has_ended(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launched = cluster.megacov("launch", str(TINY), *SMALL, f"run.directory={folder}", "--chain", "2")
    first, second = re.findall(r"submitted job (\d+)", launched.stdout)
    assert "JobState=COMPLETED" in cluster.wait(second, ("COMPLETED", "FAILED", "CANCELLED"))
    assert ended_with((tmp_path / f"run-{first}.out").read_text()) == ["0"]
    assert "the run has ended with 0" in (tmp_path / f"run-{second}.out").read_text()
    assert {path.name for path in (folder / "logs").glob("slurm_*")} == {f"slurm_{first}_0"}
