"""From a configuration to a job, and the mistakes that `megacov launch` refuses on the login node."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.launch import make_job
from megacov.cli.main import app
from megacov.config import load_config
from megacov.errors import ConfigError, DataError
from megacov.launch.job import Job
from megacov.launch.site import Site

RUNS = Path(__file__).parents[3] / "yaml_configs" / "runs"
ONE = RUNS / "qwen2.5_32b_kl_cov_8n.yaml"


def job_of(*overrides: str, path: Path = ONE, site: Site | None = None) -> Job:
    """The job of a run."""
    return make_job(load_config(path, overrides), path, list(overrides), site or Site())


def test_half_of_the_nodes_serve() -> None:
    job = job_of("run.directory=runs/x", "run.steps=5")
    assert (job.layout.shape, job.layout.train_nodes, job.layout.servers) == ("split", 4, 16)
    assert job.overrides == ("run.steps=5",)  # `resume` does not accept run.directory
    assert job.run == Path.cwd() / "runs" / "x"
    assert job.reached_by_servers and job.gpus_per_node == 8


def test_servers_of_the_trainer_are_none_of_the_job() -> None:
    job = job_of(path=RUNS / "qwen2.5_7b_kl_cov_1n.yaml")
    assert (job.layout.shape, job.layout.nodes, job.servers) == ("colocated", 1, None)


def test_no_gpus_are_asked_for_where_none_are_used() -> None:
    assert job_of("parallel.backend=gloo").gpus_per_node == 0


def test_the_partition_of_the_run_wins_over_that_of_the_site() -> None:
    assert job_of(site=Site(partition="a")).partition == "a"
    assert job_of("slurm.partition=b", site=Site(partition="a")).partition == "b"


def test_options_of_sbatch_follow_from_the_configuration() -> None:
    site = Site(partition="a", qos="low", account="ours")
    job = job_of(
        "slurm.partition=[h100, h200]", "slurm.qos=high", "slurm.gres=gpu:8", "slurm.exclude=n[1-3]", site=site
    )
    assert (job.partition, job.qos, job.node_options) == ("h100,h200", "high", ("--gres=gpu:8", "--exclude=n[1-3]"))
    assert job_of("slurm.extra=['--mail-type=END']", site=site).job_options == ("--mail-type=END",)
    assert job_of("slurm.extra=['--account=mine']").job_options == ("--account=mine",)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["checkpoint.grace_s=120", "slurm.signal_lead_s=189"], "set it to at least 190 s"),
        (["slurm.time_limit_min=5"], "slurm.time_limit_min 5"),
        (["rollout.server_environment.HF_TOKEN=abc"], "HF_TOKEN looks like a secret"),
    ],
)
def test_what_makes_no_job(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        job_of(*overrides)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0,1,1"], "give different numbers"),
        (["--seeds", "0,1", "slurm.heterogeneous=true"], "does not support arrays of heterogeneous jobs"),
        (["cluster.gpu_memory_gib=20"], "GPU of pipeline stage 0 needs"),
        (["cluster.nodes=4"], "servers named by rollout.addresses_file take whole nodes"),
        (["rollout.server_arguments.tp=16"], "40 attention heads and 8 key and value heads"),
        (["rollout.server_arguments.dp-size=2"], "2 data-parallel copies or pipeline stages"),
    ],
)
def test_what_is_not_submitted(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["launch", str(ONE), *arguments, "--dry-run"])
    assert isinstance(result.exception, ConfigError) and sentence in str(result.exception)


def test_launch_names_the_secrets_that_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text("NCCL_DEBUG=WARN\nWANDB_API_KEY=abc123\n")
    result = CliRunner().invoke(app, ["launch", str(ONE), "--dry-run", "--site", str(tmp_path / "site.env")])
    assert result.exit_code == 0, result.output
    assert "abc123" not in result.output and "export NCCL_DEBUG=WARN" in result.stdout
    assert "site.env, line 2: WANDB_API_KEY looks like a secret and stays out of the job script" in result.stderr


def test_an_account_is_given_once() -> None:
    with pytest.raises(ConfigError, match="the site sets MEGACOV_ACCOUNT"):
        job_of("slurm.extra=['--acc=mine']", site=Site(account="ours"))


def test_a_run_whose_files_are_missing_is_not_queued(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["launch", str(ONE), f"run.directory={tmp_path / 'run'}"])
    assert isinstance(result.exception, DataError) and "data.path is" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_container_sees_what_the_run_reads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_ins = tmp_path / "plug_ins"
    plug_ins.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"/not/there:{plug_ins}")
    site, asked = Site(container="pyxis", image="a.sqsh"), "/scratch/x/weights"
    job = job_of(
        f"run.directory={tmp_path}/runs/one",
        "model.path=/models/Qwen2.5-32B",
        "data.path=/data/dapo/all.jsonl",
        f"weight_sync.directory={asked}",
        "rollout.server_arguments.chat-template=/templates/mine.jinja",
        site=site,
    )
    roots = [mount.partition(":")[0] for mount in job.site.mounts.split(",")]
    assert {"/models/Qwen2.5-32B", "/data/dapo", asked, "/templates/mine.jinja", str(Path.cwd())} <= set(roots)
    for needed in (job.folder, job.config, job.run, plug_ins, RUNS.parent / "models"):
        assert any(needed.is_relative_to(root) for root in roots), needed
    assert job_of(site=Site()).site.mounts == ""
    with pytest.raises(ConfigError, match=r"does not see (?=.*PYTHONPATH)(?=.*run\.directory)(?=.*the current folder)"):
        job_of(f"run.directory={tmp_path}/runs/one", site=Site(container="pyxis", image="a", mounts="/shared:/shared"))


def test_the_line_of_the_readme_mounts_model_and_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = RUNS.parents[1]
    monkeypatch.chdir(root)
    (line,) = (line for line in (root / "README.md").read_text().splitlines() if line.startswith("megacov launch "))
    result = CliRunner().invoke(app, [*line.split()[1:], "--dry-run"])
    assert result.exception is None, result.output
    mounts = next(word for word in result.output.split() if word.startswith("--container-mounts="))
    assert f"{root}:{root}" in mounts and "/models/Qwen2.5-32B:/models/Qwen2.5-32B" in mounts


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("weight_sync.directory=/shared/weights", "weight_sync.directory"),
        ("rollout.addresses=[http://10.0.0.1:30000]", "rollout.addresses"),
    ],
)
def test_seeds_do_not_share_weights(override: str, name: str) -> None:
    tiny = str(RUNS / "tiny_grpo.yaml")
    settings = [override, *(["rollout.engine=sglang"] if name == "rollout.addresses" else [])]
    dry = ["launch", tiny, *settings, "--dry-run", "--seeds"]
    refused = CliRunner().invoke(app, [*dry, "0,1"])
    assert isinstance(refused.exception, ConfigError) and f"{name} " in str(refused.exception), refused.exception
    assert "the runs of --seeds" in str(refused.exception)
    if name == "weight_sync.directory":  # each accepted launch imports torch once
        assert CliRunner().invoke(app, [*dry, "1"]).exit_code == 0
