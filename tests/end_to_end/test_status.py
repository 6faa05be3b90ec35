"""`megacov status` of a job, on a SLURM cluster that runs inside this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.slurm import ROOT, slurm_cluster

pytestmark = pytest.mark.slurm

TINY = str(ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml")
TWO_NODES = ("parallel.data=2", "parallel.backend=gloo", "cluster.gpus_per_node=1", "rollout.prompts_per_step=8")


def test_a_job_is_shown_before_while_and_after_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with slurm_cluster(tmp_path / "cluster", nodes=2) as cluster:
        cluster.run("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=test")
        submitted = cluster.megacov(
            "launch", TINY, *TWO_NODES, f"run.directory={folder}", "rewards.verifier=nowhere:judge", "--chain=2"
        )
        job, later = re.findall(r"submitted job (\d+)", submitted.stdout)

        def status(of: str) -> dict[str, object]:
            shown = cluster.megacov("status", of, "--json")
            assert shown.returncode == 0, shown.stderr
            found: dict[str, object] = json.loads(shown.stdout)
            return found

        waiting = status(str(folder))
        assert waiting["state"]["word"] == "waiting" and waiting["job"]["name"] == job
        assert waiting["jobs_waiting"] == 1 and waiting["run"] == str(folder)
        assert status(job)["state"] == waiting["state"]

        cluster.run("scontrol", "update", "NodeName=node1", "State=RESUME")
        cluster.wait(job, ("RUNNING", "FAILED"))
        running = status(job)
        assert running["state"]["word"] in ("starting", "training", "leaving", "failed")
        assert running["job"]["nodes"] == "node[0-1]" and running["job"]["left_s"] != 0

        cluster.wait(job, ("FAILED",))
        cluster.wait(later, ("COMPLETED",))
        for of in (job, str(folder)):
            ended = status(of)
            assert ended["state"]["sentence"].startswith("ended with code 2: the configuration is impossible")
            assert ended["state"]["exit_code"] == 2 and ended["restarts"] == 0
            assert ended["logs"] == str(folder / "logs" / f"slurm_{job}_0")
        assert f"job         {job} is FAILED with exit code 2 on node[0-1]" in cluster.megacov("status", job).stdout
        unknown = cluster.megacov("status", "4711")
        assert unknown.returncode == 3 and "SLURM does not know job 4711, or not any more" in unknown.stderr
        none = cluster.megacov("status", f"{job}_3")
        assert none.returncode == 3
