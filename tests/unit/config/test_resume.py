"""Settings that a continuation may change, and those it may not."""

from __future__ import annotations

import pytest

from megacov.config import RunConfig, load_config
from megacov.config.resume import FREE, contradictions, settings


def _config(*overrides: str) -> RunConfig:
    return load_config("yaml_configs/runs/tiny_kl_cov.yaml", overrides)


def _found(*overrides: str, before: tuple[str, ...] = ()) -> list[str]:
    return list(contradictions(_config(*before).model_dump(mode="json"), _config(*overrides)))


def test_where_and_how_a_run_runs_may_change() -> None:
    changes = ("run.steps=7", "parallel.tensor=2", "model.recompute=full", "batch.packed=true", "checkpoint.every=3")
    assert _found(*changes, "rollout.num_threads=2", "model.path=elsewhere", "monitor.log_every=5") == []


@pytest.mark.parametrize(
    "change",
    [
        "run.seed=5",
        "optimizer.lr=1e-5",
        "rollout.temperature=0.5",
        "batch.updates_per_rollout=2",
        "algorithm.loss.kl_coef=0.5",
        "data.shuffle=false",
        "model.dtype=bfloat16",
    ],
)
def test_what_a_run_computes_may_not(change: str) -> None:
    assert _found(change) == [change.partition("=")[0]]


def test_another_loss_is_named_with_its_settings() -> None:
    found = _found("algorithm.loss.name=ppo_clip", "algorithm.selection.name=none")
    assert {"algorithm.loss.name", "algorithm.selection.name"} <= set(found)


def test_the_length_of_a_run_is_free_unless_the_learning_rate_follows_it() -> None:
    assert _found("run.steps=500") == []
    assert _found("run.steps=500", "optimizer.decay=cosine", before=("optimizer.decay=cosine",)) == ["run.steps"]


def test_a_setting_newer_than_the_checkpoint_had_its_default() -> None:
    saved = _config().model_dump(mode="json")
    del saved["rollout"]["max_staleness"]
    assert contradictions(saved, _config()) == {}
    assert list(contradictions(saved, _config("rollout.max_staleness=1"))) == ["rollout.max_staleness"]
    del saved["rollout"]["stop_token_ids"], saved["data"]["chat_template_kwargs"]
    assert contradictions(saved, _config()) == {}
    assert list(contradictions(saved, _config("rollout.stop_token_ids=[7]"))) == ["rollout.stop_token_ids"]


def test_a_setting_newer_than_the_checkpoint_had_its_default_in_a_section_inside_too() -> None:
    saved = _config().model_dump(mode="json")
    del saved["algorithm"]["advantages"]["name"]
    assert contradictions(saved, _config()) == {}
    found = contradictions(saved, _config("algorithm.advantages={name: rloo}"))
    assert found["algorithm.advantages.name"] == "algorithm.advantages.name was 'group_relative' and is 'rloo'"


def test_every_free_setting_is_one() -> None:
    names = settings(_config())
    for free in FREE:
        assert any(name == free or name.startswith(f"{free}.") for name in names), free
