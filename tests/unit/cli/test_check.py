"""`megacov check`: its output, the packages that it must not import, and every ready configuration."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.check_plan import plan_run, problems
from megacov.cli.check_remarks import remarks
from megacov.cli.main import app
from megacov.cli.server_layout import job_layout
from megacov.config import load_config
from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
RUNS = ROOT / "yaml_configs" / "runs"
OF_THE_PAPER = re.compile("(grpo|clip_higher|clip_cov|kl_cov)_(cp_)?[0-9]+n")
READY = sorted(path for path in RUNS.glob("qwen*.yaml") if OF_THE_PAPER.search(path.stem))
ALL = sorted(RUNS.glob("*.yaml"))
ONE = "yaml_configs/runs/qwen2.5_32b_kl_cov_8n.yaml"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def check(*arguments: str) -> str:
    """Output of a check that succeeds."""
    result = CliRunner().invoke(app, ["check", *arguments])
    assert result.exception is None, result.output
    return result.stdout


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_run_of_the_repository_fits(path: Path) -> None:
    plan = plan_run(load_config(path))
    assert list(problems(plan)) == []
    nearly_full = [remark for remark in remarks(plan) if "within the error of the plan" in remark]
    assert nearly_full == []
    if path in READY:
        assert plan.placement.servers > 0
        assert plan.placement.idle_gpus == 0


def test_there_is_a_ready_run_for_each_algorithm_and_size() -> None:
    algorithms = ("grpo", "clip_higher", "clip_cov", "kl_cov")
    expected = {f"qwen2.5_7b_{name}_1n" for name in algorithms} | {f"qwen3_32b_{name}_cp_8n" for name in algorithms}
    expected |= {f"qwen2.5_32b_{name}_{nodes}n" for name in algorithms for nodes in (4, 8, 16)}
    assert {path.stem for path in READY} == expected


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_run_has_the_values_of_the_paper(path: Path) -> None:
    config = load_config(path)
    is_small = "7b" in path.stem
    assert config.optimizer.lr == (5e-7 if is_small else 1e-6)
    assert (config.optimizer.decay, config.optimizer.weight_decay, config.optimizer.clip_grad) == ("constant", 0.0, 1.0)
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (256, 8)
    assert (config.batch.updates_per_rollout, config.data.max_prompt_length) == (8, 2048)
    assert config.rollout.max_response_length == (32768 if "_cp_" in path.stem else 8192)
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.top_k) == (1.0, 1.0, -1)
    assert (config.rollout.filter_groups, config.rollout.max_filter_rounds) == (True, 10)
    loss, selection = config.algorithm.loss, config.algorithm.selection
    clips = {"grpo": (0.2, 0.2), "clip_higher": (0.2, 0.28), "clip_cov": (1.0, 1.0)}
    for name, clip in clips.items():
        if f"_{name}_" in path.stem:
            assert (loss.clip_low, loss.clip_high) == clip
    if "_clip_cov_" in path.stem:
        assert (selection.ratio, selection.lower, selection.upper) == (2e-4, 1.0, 5.0)
    if "_kl_cov_" in path.stem:
        assert (selection.ratio, loss.kl_coef) == (2e-3 if is_small else 2e-4, 1.0)


def test_it_prints_batches_layout_and_memory() -> None:
    shown = check(ONE)
    for words in (
        "2,048 sequences",
        "nodes 0-3",
        "16 servers, 2 GPUs each",
        "logits, their gradient",
        "The run fits, as far as",
    ):
        assert words in shown


def test_it_says_what_each_method_of_selection_costs() -> None:
    method = "algorithm.selection.method="
    corrected, passed, unknown = (
        check(ONE, override) for override in (f"{method}correction", f"{method}pass", "algorithm.old_log_probs=rollout")
    )
    # Three forwards over 37 % of the positions.
    assert "1.10 passes" in corrected and "over 37% of a usual batch" in corrected and "room" not in corrected
    assert "correction" not in passed and "2 passes" in passed
    # Without a first optimizer step that selects for nothing, `auto` knows no share.
    assert "or a correction" not in unknown and "room" in unknown


def test_docs_show_what_it_prints() -> None:
    shown = check(ONE, "weight_sync.host=10.0.0.1")
    assert "warning" not in shown
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert all(line.rstrip() in page for line in shown.splitlines())
    for path in READY:
        if "_kl_cov_" in path.stem:
            assert row_of(path) in page, "\n".join(row_of(path) for path in READY if "_kl_cov_" in path.stem)


def row_of(path: Path) -> str:
    """A run in the table of docs/cluster.md; the plan is the same for all algorithms."""
    plan = plan_run(load_config(path))
    layout, stages, server = plan.layout, plan.stages, plan.server
    assert server is not None
    names = ("weights", "gradients", "optimizer", "activations", "logits", "save", "peak")
    held = [f"{max(getattr(stage, name) for stage in stages) / 2**30:.1f}" for name in names]
    shape = f"TP {layout.tensor}, PP {layout.pipeline}, CP {layout.context}, DP {layout.data}"
    servers = f"{plan.placement.servers} x {server.sequences}"
    name = path.stem.replace("_kl_cov", "_*")
    return f"| `{name}` | {shape} | {' | '.join(held)} | {servers} |"


def test_every_setting_can_be_shown() -> None:
    shown = check("yaml_configs/runs/tiny_grpo.yaml", "--resolved", "run.steps=7")
    yaml = shown.partition("\n\n")[0]
    assert parse_yaml(yaml, source="shown")["run"]["steps"] == 7


def test_what_does_not_fit_ends_with_the_stage_both_numbers_and_a_way_out() -> None:
    arguments = ["check", ONE, "parallel.tensor=2", "parallel.data=16", "--suggest"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "GPU of pipeline stage 0 needs" in str(result.exception)
    assert "has 76.0 GiB" in str(result.exception)
    assert "--suggest" in str(result.exception)
    assert "fastest first" in result.stdout


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rollout.max_response_length=200000"], "data.max_prompt_length + rollout.max_response_length is 202048"),
        (["cluster.node_memory_gib=64"], "a checkpoint takes 153 GiB of a node's main memory"),
        (["rollout.server_arguments.tp-size=1", "cluster.gpu_memory_gib=70"], "a server of 1 GPUs has 0.0 GiB"),
        (
            [
                "rollout.addresses_file=null",
                "rollout.servers=16",
                "rollout.colocated=true",
                "weight_sync.transport=ipc",
            ],
            "while servers sample, the trainer keeps",
        ),
    ],
)
def test_each_thing_that_does_not_fit_is_said(overrides: list[str], sentence: str) -> None:
    plan = plan_run(load_config(ONE, overrides))
    assert any(problem.startswith(sentence) for problem in problems(plan)), list(problems(plan))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["cluster.nodes=null"], "no GPU is left for rollout servers"),
        (
            ["rollout.addresses_file=null", "rollout.addresses=[http://10.0.0.5:30000]"],
            "weight_sync.host is 127.0.0.1",
        ),
        (["parallel.data=3"], "256 sequences of an optimizer step are split over parallel.data 3"),
        (["cluster.gpu_memory_gib=66"], "the fullest GPU is planned at 9"),
        (["batch.updates_per_rollout=1"], "algorithm.loss.name is kl_cov and batch.updates_per_rollout is 1"),
    ],
)
def test_each_doubt_is_said(overrides: list[str], sentence: str) -> None:
    found = remarks(plan_run(load_config(ONE, overrides)))
    assert any(remark.startswith(sentence) for remark in found), found


@pytest.mark.parametrize(
    ("overrides", "kind", "sentence"),
    [
        (["model.path=gone", "model.config_file=null"], DataError, "model.path is gone, which has no config.json"),
        (["parallel.tensor=16"], ConfigError, "parallel.tensor is 16 and the model has 40 attention heads"),
        (["parallel.expert=2"], ConfigError, "the model has no experts"),
        (["cluster.nodes=2"], ConfigError, "cluster.nodes is 2 and the trainer takes 4"),
        (["cluster.nodes=4"], ConfigError, "cluster.nodes is 4, all of which train"),
        (["rollout.server_arguments.tp-size=16"], ConfigError, "tp-size is 16 and the model has 40 attention heads"),
        (["rollout.server_arguments={tp: 3}"], ConfigError, "tp-size is 3 and the model has 40 attention heads"),
        (["rollout.server_arguments.dp-size=2"], ConfigError, "asks for 2 data-parallel copies or pipeline stages"),
        (["rollout.server_arguments.pp_size=2"], ConfigError, "asks for 2 data-parallel copies or pipeline stages"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(overrides: list[str], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        plan_run(load_config(ONE, overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("rollout.server_arguments={tp: 4}",),
        ("rollout.server_arguments={tp-size: 2, dp-size: 2}", "weight_sync.transport=disk"),
        ("rollout.server_arguments.tp-size=8",),
        ("cluster.nodes=null",),
        ("cluster.gpus_per_node=5", "parallel={tensor: 4, data: 4}", "cluster.nodes=7"),
        ("rollout.colocated=true", "cluster.nodes=4", "weight_sync.transport=ipc"),
    ],
)
def test_servers_lie_where_a_job_puts_them(overrides: tuple[str, ...]) -> None:
    config = load_config(ONE, overrides)
    found, job = plan_run(config).placement, job_layout(config)
    assert (found.servers, found.nodes) == (job.servers, job.nodes)
    first = 0 if config.rollout.colocated else job.train_nodes
    last = first + job.server_nodes - 1
    assert found.server_nodes == ((first, last) if job.servers else None)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("qwen2.5_32b_kl_cov_8n", ()),
        (
            "qwen2.5_32b_kl_cov_8n",
            (
                "rollout.colocated=true",
                "rollout.server_arguments.mem-fraction-static=0.6",
                "parallel.data=8",
                "weight_sync.transport=ipc",
            ),
        ),
        ("qwen2.5_32b_kl_cov_8n", ("algorithm.selection.scope=micro_batch", "batch.micro_batch_tokens=20480")),
        ("qwen2.5_32b_kl_cov_4n", ("cluster.node_memory_gib=230",)),
        ("qwen3_32b_kl_cov_cp_8n", ()),
    ],
)
def test_what_is_suggested_passes(name: str, overrides: tuple[str, ...]) -> None:
    path = RUNS / f"{name}.yaml"
    plan = plan_run(load_config(path, overrides))
    found = plan.search().fitting
    assert found
    for one in found[:: max(1, len(found) // 12)]:
        settings = [f"parallel.{name}={str(value).lower()}" for name, value in asdict(one.layout).items()]
        settings += [f"model.recompute={one.recompute}", f"batch.micro_batch_tokens={one.micro_batch_tokens}"]
        assert list(problems(plan_run(load_config(path, [*overrides, *settings])))) == [], settings


def test_sequences_longer_than_a_sliding_window_are_refused(tmp_path: Path) -> None:
    from tests.unit.plan.test_parameters import write_config

    file = write_config(tmp_path, "mistral")
    overrides = [f"model.config_file={file}", "parallel.tensor=4", "rollout.server_arguments.tp-size=1"]
    *_, problem = problems(plan_run(load_config(ONE, overrides)))
    assert "is 10240 and the model attends through a sliding window of 24 tokens" in problem


def test_the_model_of_the_path_wins_over_the_file() -> None:
    config = load_config(ONE, ["model.path=examples/tiny_policy", "parallel.tensor=2"])
    assert plan_run(config).model_file.parent.name == "tiny_policy"


def test_the_largest_batch_of_several_sources_is_planned(tmp_path: Path) -> None:
    sources = "data.sources=[{name: a, path: a, samples_per_prompt: 4}, {name: b, path: b, samples_per_prompt: 6}]"
    output = check("yaml_configs/runs/tiny_kl_cov.yaml", "data.path=null", sources, "batch.updates_per_rollout=5")
    assert "largest rollout batch" in output and "64 prompts x 4 to 6 samples" in output
    plan = plan_run(load_config("yaml_configs/runs/tiny_kl_cov.yaml", ["data.path=null", sources]))
    assert plan.batch_plan.sequences == 64 * 6
