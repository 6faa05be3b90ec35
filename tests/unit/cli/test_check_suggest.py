"""`megacov check --suggest`: layouts that fit, also where the run's own cannot be planned, and never silence."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from megacov.cli.check_plan import plan_run, plan_unsplit, problems
from megacov.cli.main import app
from megacov.config import load_config
from megacov.errors import ConfigError

RUN = "yaml_configs/runs/qwen2.5_7b_kl_cov_1n.yaml"
SIZES = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "hidden_act": "silu",
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for Qwen3-30B-A3B on nodes of four GPUs, whose servers run elsewhere."""
    file = tmp_path_factory.mktemp("moe") / "config.json"
    file.write_text(json.dumps(SIZES))
    return [
        *(RUN, "model.path=gone", f"model.config_file={file}", "cluster.gpus_per_node=4", "cluster.nodes=null"),
        *("rollout.servers=0", "rollout.server_devices=[]", "rollout.addresses_file=servers.txt"),
    ]


def suggested(*arguments: str) -> tuple[str, BaseException | None]:
    """Output and error, with its lines joined."""
    result = CliRunner().invoke(app, ["check", *arguments, "--suggest"])
    return " ".join(result.stdout.split()), result.exception


def test_experts_are_spread_where_the_layout_asked_for_cannot_be_planned(moe: list[str]) -> None:
    shown, error = suggested(*moe, "parallel.tensor=8", "parallel.data=2")
    assert isinstance(error, ConfigError) and "4 key-value heads" in str(error)
    assert "Layouts of 16 GPUs that fit" in shown and "expert" in shown
    run, *overrides = moe
    config = load_config(run, [*overrides, "parallel.tensor=8", "parallel.data=2"])
    found = plan_unsplit(config).search().fitting
    assert {one.layout.expert for one in found} >= {1, 2, 4, 8}
    by_expert = [one for one in found if (one.layout.expert, one.layout.data, one.layout.pipeline) == (8, 8, 1)]
    assert by_expert and min(one.peak for one in by_expert) < 76 * 2**30
    # A layout that is shown can be asked for.
    for one in (found[0], by_expert[0], found[-1]):
        sizes = {name: str(value).lower() for name, value in asdict(one.layout).items()}
        layout = [f"parallel.{name}={value}" for name, value in sizes.items()]
        layout += [f"model.recompute={one.recompute}", f"batch.micro_batch_tokens={one.micro_batch_tokens}"]
        assert list(problems(plan_run(load_config(run, [*overrides, *layout])))) == []


def test_too_few_gpus_get_the_nearest_layout_and_the_least_number_that_is_enough(moe: list[str]) -> None:
    shown, error = suggested(*moe, "parallel={tensor: 1, sequence: false, data: 8}")
    assert isinstance(error, ConfigError)
    assert "No layout of 8 GPUs fits. The nearest is parallel.tensor=4, parallel.sequence=true" in shown
    assert "108.4 GiB on the fullest GPU, which has 76.0 GiB." in shown
    assert "Layouts of 12 GPUs that fit" in shown


def test_gpus_that_fill_no_whole_nodes_are_rounded_up(moe: list[str]) -> None:
    shown, error = suggested(*moe, "parallel={tensor: 1, sequence: false, data: 15}")
    assert isinstance(error, ConfigError) and "cannot have equally many" in str(error)
    assert "Layouts of 16 GPUs that fit" in shown


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "cluster.gpu_memory_gib=4.001",
            "recompute=full, batch.micro_batch_tokens=16: 133.6 MiB on the fullest GPU, which has 1.0 MiB. No",
        ),
        ("cluster.node_memory_gib=0.001", "a checkpoint takes 0 GiB of a node's main memory"),
        ("rollout.server_arguments.tp-size=3", "No layout can be suggested before this is corrected: rollout.server"),
    ],
)
def test_something_is_always_shown(override: str, words: str) -> None:
    run = ["yaml_configs/runs/tiny_grpo.yaml", "rollout.engine=sglang", "rollout.servers=1", override]
    shown, error = suggested(*run, "batch.micro_batch_tokens=16")
    assert isinstance(error, ConfigError)
    assert words in shown, shown
