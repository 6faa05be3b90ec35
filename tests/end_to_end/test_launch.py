"""`megacov launch` on a SLURM cluster that runs inside this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm import ROOT, SlurmCluster, slurm_cluster, submit

pytestmark = pytest.mark.slurm

RUNS = ROOT / "yaml_configs" / "runs"
READY = sorted(RUNS.glob("qwen*.yaml"))
TINY = str(RUNS / "tiny_grpo.yaml")
# Two ranks on two nodes, on the CPU.
TWO_NODES = ("parallel.data=2", "parallel.backend=gloo", "cluster.gpus_per_node=1", "rollout.prompts_per_step=8")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """As many nodes as the largest run asks for."""
    with slurm_cluster(nodes=16) as running:
        yield running


def test_slurm_takes_every_ready_run(cluster: SlurmCluster, tmp_path: Path) -> None:
    assert len(READY) == 25
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


def test_slurm_reads_options_of_the_configuration_as_they_are(cluster: SlurmCluster, tmp_path: Path) -> None:
    comment = 'it\'s "mine" $(touch x) `id` # \\ hetjob'
    options = [f"--comment={comment}", "--hold", "--nice=7"]
    settings = (
        "slurm.partition=[batch, rollout]",
        "slurm.exclude=node[3-4],node7",
        f"slurm.extra={json.dumps(options)}",
    )
    job = submit(cluster, TINY, *TWO_NODES, f"run.directory={tmp_path / 'run'}", *settings)
    shown = cluster.run("scontrol", "show", "job", "--oneliner", job).stdout
    assert f" Comment={comment} " in shown and " Nice=7 " in shown
    assert " Partition=batch,rollout " in shown and "ExcNodeList=node[3-4,7]" in shown
    assert cluster.run("scancel", job).returncode == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("slurm.partition=nowhere",), "there is no partition nowhere; there are batch, rollout"),
        (("cluster.nodes=17",), "the job takes 17 nodes and the partition batch has 16"),
    ],
)
def test_what_could_never_start_is_refused(cluster: SlurmCluster, settings: tuple[str, ...], sentence: str) -> None:
    here = ("data.path=examples/sum_pairs/prompts.jsonl", "data.answer_field=answer", "rewards.verifier=sum_pairs")
    refused = cluster.megacov("launch", str(RUNS / "qwen2.5_32b_kl_cov_16n.yaml"), *here, *settings)
    assert refused.returncode == 2
    assert sentence in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert cluster.run("squeue", "--noheader").stdout == ""


def test_a_permanent_error_is_not_requeued(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    verifier = "rewards.verifier=tests.support.verifiers:not_a_number"
    job = submit(cluster, TINY, *TWO_NODES, f"run.directory={folder}", verifier)
    shown = cluster.wait(job, ("FAILED", "COMPLETED"))
    assert "JobState=FAILED" in shown and "Restarts=0" in shown and "ExitCode=6:0" in shown
    assert (folder / "logs" / "ended").read_text() == "6\n"


def test_a_model_that_is_on_no_node_ends_the_job_with_a_sentence(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    elsewhere = ("model.path=/models/tiny", "model.config_file=examples/tiny_policy/config.json")
    launched = cluster.megacov("launch", TINY, *TWO_NODES, *elsewhere, f"run.directory={folder}")
    assert launched.returncode == 0 and "not looked at: model.path /models/tiny is not on this" in launched.stderr
    shown = cluster.wait(launched.stdout.split()[2].rstrip(":"), ("FAILED", "COMPLETED"))
    assert "Restarts=0" in shown and "ExitCode=3:0" in shown
    said = (folder / "logs" / "latest" / "batch.log").read_text()
    assert "megacov: preflight: model.path /models/tiny does not exist on any of the nodes" in said
