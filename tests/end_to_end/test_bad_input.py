"""A user's mistake ends in one sentence and an exit code, and leaves nothing running."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from megacov.monitor.run_end import read_end
from tests.support.command import Ended, descendants, run, started, still_there
from tests.support.forked import name_of
from tests.support.policies import TINY_POLICY
from tests.support.scripted_server import Call, Reply, completion, scripted_server

KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"


def _assert_one_sentence(ended: Ended, *, code: int, words: str) -> None:
    lines = [line for line in ended.output.splitlines() if "warning" not in line]
    assert len(lines) == 1, ended.output
    assert lines[0].startswith("megacov: ")
    assert words in lines[0]
    assert ended.code == code
    assert ended.left == []


# Mistakes that show before any rank starts.
AT_ONCE = {
    "unknown_loss": (["algorithm.loss.name=ppo"], 2, "algorithm.loss.name"),
    "imported_loss": (
        ["algorithm.loss={name: 'nowhere.losses:soft'}", "algorithm.selection={name: none}"],
        2,
        "cannot import 'nowhere.losses'",
    ),
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


# Mistakes that only a rank can see.
ON_A_RANK = {
    "heads_do_not_divide": (["parallel.tensor=3"], 2, "parallel.tensor is 3"),
    "layers_do_not_divide": (["parallel.pipeline=3"], 2, "parallel.pipeline is 3"),
    "nan_reward": (["rewards.verifier=tests.support.verifiers:not_a_number", "parallel.tensor=2"], 6, "finite"),
    "unknown_verifier": (["rewards.verifier=sum_triples"], 2, "sum_triples"),
    "filter_never_satisfied": (
        ["rollout.filter_groups=true", "rollout.max_filter_rounds=1", "rewards.verifier=tests.support.verifiers:one"],
        4,
        "max_filter_rounds",
    ),
    "server_cannot_listen": (["rollout.host=203.0.113.1"], 4, "203.0.113.1"),
    "server_too_slow": (["rollout.start_timeout_s=0.01"], 4, "rollout.start_timeout_s"),
    "reward_beyond_float32": (
        ["rewards.verifier=tests.support.verifiers:huge", "parallel.data=2"],
        6,
        "finite number that float32 can hold",
    ),
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


CONFIG = json.loads((TINY_POLICY / "config.json").read_text())
BAD_MODELS = {
    "weights_do_not_fit": json.dumps(CONFIG | {"intermediate_size": 2 * CONFIG["intermediate_size"]}),
    "no_json": "{",
}


@pytest.mark.dist
@pytest.mark.parametrize("name", list(BAD_MODELS))
def test_a_bad_model_configuration_is_said_once(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_POLICY, model)
    (model / "config.json").write_text(BAD_MODELS[name])
    overrides = (f"run.directory={tmp_path / 'run'}", f"model.path={model}", "parallel.tensor=2")
    ended = run("train", KL_COV, *overrides, log=tmp_path / "log")
    _assert_one_sentence(ended, code=3, words="config.json")


@pytest.mark.dist
def test_a_server_that_dies_while_it_starts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started("train", KL_COV, f"run.directory={tmp_path / 'run'}", "parallel.tensor=2", log=log) as process:
        server = None
        deadline = time.monotonic() + 120
        while server is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            below = descendants(process.pid)
            server = next((child for child in below if name_of(child) == "serve"), None)
        server.kill()
        code = process.wait(timeout=120)
        left = still_there(below)
    _assert_one_sentence(Ended(code, log.read_text(), left), code=4, words="server")


class _AnswersNothing:
    """A healthy server with the weights that it was given, whose completions hold no token."""

    version = "default"

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/generate":
            return Reply([completion([], version=self.version) for _ in range(call.body["sampling_params"]["n"])])
        if call.path in ("/model_info", "/get_model_info", "/server_info", "/get_server_info"):
            return Reply({"weight_version": self.version, "model_path": "x", "version": "0.5.23"})
        if call.path == "/update_weights_from_disk":
            self.version = call.body["weight_version"]
        return Reply({"success": True, "message": ""})


@pytest.mark.dist
def test_completions_without_a_token_teach_nothing(tmp_path: Path) -> None:
    async def run_against_it() -> Ended:
        async with scripted_server(_AnswersNothing()) as (address, _):
            overrides = ("rollout.engine=sglang", f"rollout.addresses=[{address}]", "parallel.tensor=2")
            arguments = ("train", KL_COV, f"run.directory={tmp_path / 'run'}", *overrides)
            return await asyncio.to_thread(run, *arguments, log=tmp_path / "log")

    _assert_one_sentence(asyncio.run(run_against_it()), code=3, words="no completion of this rollout has a token")


@pytest.mark.dist
def test_updates_that_are_not_finite_are_left_out_until_there_are_too_many(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(
        "train",
        "yaml_configs/runs/tiny_grpo.yaml",
        f"run.directory={folder}",
        "rewards.verifier=tests.support.verifiers:near_the_limit",
        "algorithm.advantages.normalize_std=false",
        "algorithm.aggregation=sequence_sum_constant_norm",
        "algorithm.aggregation_norm=1",
        "optimizer.max_skipped_updates=1",
        "batch.updates_per_rollout=1",
        "rollout.prompts_per_step=4",
        "run.steps=9",
        "parallel.data=2",
        "parallel.tensor=2",
        log=tmp_path / "log",
    )
    said = [line for line in ended.output.splitlines() if line.startswith("megacov: ")]
    assert len(said) == 2, ended.output
    first, last = said
    assert first.startswith("megacov: warning: step 1, update 1 was left out on all ranks: values of sample")
    assert last.startswith("megacov: step 2, update 2 was left out on all ranks: values of sample")
    assert "2 in a row, and optimizer.max_skipped_updates is 1" in last
    assert (ended.code, ended.left) == (7, [])
    noted = read_end(folder, since=0.0)
    assert noted is not None and (noted.code, f"megacov: {noted.reason}") == (7, last)
    assert "step 1/9" in ended.output
    assert "Traceback" not in ended.output
    for step in (1, 2):
        (report,) = json.loads((folder / "logs" / f"not_finite_step_{step:06d}.json").read_text())
        assert report["update"] == step
        assert report["samples"][0]["reward"] in (0.0, pytest.approx(3e38))
