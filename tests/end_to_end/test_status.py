"""`megacov status` of a job, on a SLURM cluster that runs inside this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm import ROOT, slurm_cluster

pytestmark = pytest.mark.slurm

TINY = str(ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml")
TWO_NODES = ("parallel.data=2", "parallel.backend=gloo", "cluster.gpus_per_node=1", "rollout.prompts_per_step=8")


def test_a_job_is_shown_before_while_and_after_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with slurm_cluster(nodes=2) as cluster:
        blocking = cluster.run("sbatch", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600").stdout
        cluster.wait(blocking.split()[-1], ("RUNNING",))
        settings = (*TWO_NODES, f"run.directory={folder}", "rewards.verifier=tests.support.verifiers:not_a_number")
        submitted = cluster.megacov("launch", TINY, *settings).stdout
        job = submitted.removeprefix("submitted job ").partition(":")[0]

        def status(of: str) -> dict[str, Any]:
            shown = cluster.megacov("status", of, "--json")
            assert shown.returncode == 0, shown.stderr
            found: dict[str, Any] = json.loads(shown.stdout)
            return found

        waiting = status(str(folder))
        assert waiting["state"]["word"] == "waiting" and waiting["job"]["name"] == job

        cluster.run("scancel", blocking.split()[-1])
        cluster.wait(job, ("RUNNING", "FAILED"))
        running = status(job)
        assert running["state"]["word"] in ("starting", "training", "leaving", "failed")
        assert running["job"]["nodes"] == "node[0-1]" and running["run"] == str(folder)

        cluster.wait(job, ("FAILED",))
        ended = status(str(folder))
        assert ended["state"]["sentence"].startswith("ended with code 6: ")
        assert ended["state"]["exit_code"] == 6 and ended["logs"] == str(folder / "logs" / f"slurm_{job}_0")
        assert f"job         {job} is FAILED with exit code 6 on node[0-1]" in cluster.megacov("status", job).stdout
        unknown = cluster.megacov("status", "4711")
        assert unknown.returncode == 3 and "SLURM does not know job 4711, or no longer does" in unknown.stderr
