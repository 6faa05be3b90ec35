"""What a user can get wrong ends in one sentence and an exit code, and leaves nothing running."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.support.command import Ended, run
from tests.support.policies import TINY_POLICY

KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"


def _assert_one_sentence(ended: Ended, *, code: int, words: str) -> None:
    lines = [line for line in ended.output.splitlines() if "warning" not in line]
    assert len(lines) == 1, ended.output
    assert lines[0].startswith("megacov: ")
    assert words in lines[0]
    assert ended.code == code
    assert ended.left == []


# What is seen before any rank is started.
AT_ONCE = {
    "unknown_loss": (["algorithm.loss.name=ppo"], 2, "algorithm.loss.name"),
    "unknown_key": (["optimizer.learning_rate=1"], 2, "optimizer.learning_rate"),
    "wrong_type": (["run.steps=many"], 2, "run.steps"),
    "batch_does_not_divide": (["batch.updates_per_rollout=5"], 2, "batch.updates_per_rollout is 5"),
    "percent_for_fraction": (
        ["algorithm.selection.ratio=0.2", "algorithm.selection.allow_large_ratio=false"],
        2,
        "algorithm.selection.ratio is 0.2",
    ),
    "missing_prompts": (["data.path=nowhere.jsonl"], 3, "nowhere.jsonl"),
    "missing_model": (["model.path=nowhere"], 3, "nowhere"),
}


@pytest.mark.parametrize("name", list(AT_ONCE))
def test_wrong_settings_are_seen_before_ranks_start(name: str, tmp_path: Path) -> None:
    overrides, code, words = AT_ONCE[name]
    ended = run("train", KL_COV, f"run.directory={tmp_path / 'run'}", *overrides, log=tmp_path / "log")
    _assert_one_sentence(ended, code=code, words=words)
    assert not (tmp_path / "run").exists()


def test_missing_configuration(tmp_path: Path) -> None:
    ended = run("train", str(tmp_path / "nothing.yaml"), log=tmp_path / "log")
    _assert_one_sentence(ended, code=2, words="nothing.yaml")


# What only a rank can see.
ON_A_RANK = {
    "heads_do_not_divide": (["parallel.tensor=3"], 2, "parallel.tensor is 3"),
    "layers_do_not_divide": (["parallel.pipeline=3"], 2, "parallel.pipeline is 3"),
    "nan_reward": (["rewards.verifier=tests.support.verifiers:not_a_number"], 6, "finite"),
    "infinite_reward": (
        ["rewards.verifier=tests.support.verifiers:infinite", "parallel.tensor=2"],
        6,
        "finite",
    ),
    "unknown_verifier": (["rewards.verifier=sum_triples"], 2, "sum_triples"),
    "filter_never_satisfied": (
        ["rollout.filter_groups=true", "rollout.max_filter_rounds=1", "rewards.verifier=tests.support.verifiers:one"],
        4,
        "max_filter_rounds",
    ),
    "server_cannot_listen": (["rollout.host=203.0.113.1"], 4, "203.0.113.1"),
    "server_too_slow": (["rollout.start_timeout_s=0.5"], 4, "rollout.start_timeout_s"),
}


@pytest.mark.dist
@pytest.mark.parametrize("name", list(ON_A_RANK))
def test_what_ranks_find_wrong_is_said_once(name: str, tmp_path: Path) -> None:
    overrides, code, words = ON_A_RANK[name]
    ended = run("train", KL_COV, "run.steps=1", f"run.directory={tmp_path / 'run'}", *overrides, log=tmp_path / "log")
    _assert_one_sentence(ended, code=code, words=words)


@pytest.mark.dist
def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run(
            "train",
            KL_COV,
            f"run.directory={tmp_path / 'run'}",
            f"rollout.port={port}",
            log=tmp_path / "log",
        )
    _assert_one_sentence(ended, code=4, words=str(port))


@pytest.mark.dist
def test_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_POLICY, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["#"] = 16
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    ended = run("train", KL_COV, f"run.directory={tmp_path / 'run'}", f"model.path={model}", log=tmp_path / "log")
    _assert_one_sentence(ended, code=3, words="17 tokens")


@pytest.mark.dist
def test_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_POLICY, model)
    config = json.loads((model / "config.json").read_text())
    config["intermediate_size"] *= 2
    (model / "config.json").write_text(json.dumps(config))
    ended = run("train", KL_COV, f"run.directory={tmp_path / 'run'}", f"model.path={model}", log=tmp_path / "log")
    _assert_one_sentence(ended, code=3, words="config.json")
