"""The checkpoint that is saved when the rollout servers are lost: the last finished step, with carried groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megacov.config import load_config
from megacov.errors import CheckpointError, DataError, MegacovError, RolloutError, WeightSyncError
from megacov.trainer import loop
from megacov.trainer.build import Run
from megacov.trainer.state import TrainState
from megacov.trainer.step import StepReport


class Saves:
    """In place of a checkpointer: keeps what it is given, or fails."""

    run_folder = Path("here")

    def __init__(self, *, fails: bool = False) -> None:
        self.states: list[TrainState] = []
        self.rollout_states: list[str] = []
        self.rollout = SimpleNamespace(state="before")
        self.fails = fails

    def take_metrics(self) -> dict[str, float]:
        return {}

    def save_now(self, _policy: object, state: TrainState) -> None:
        if self.fails:
            raise CheckpointError("disk full")
        self.states.append(replace(state))
        self.rollout_states.append(self.rollout.state)


def run_of(saves: Saves, *overrides: str) -> Run:
    config = load_config("yaml_configs/runs/tiny_kl_cov.yaml", ("run.directory=here", *overrides))
    parts: dict[str, Any] = dict.fromkeys(("policy", "algorithm", "settings", "recorder"))
    parts["rollout"] = saves.rollout
    return Run(config=config, state=TrainState(step=3, prompt_position=24), checkpointer=saves, **parts)  # type: ignore[arg-type]


def fail(run: Run, error: MegacovError) -> str:
    """An error after the next batch was taken from the data."""

    def step() -> None:
        with run.saved_if_servers_are_lost():
            run.state.prompt_position = 32
            run.rollout.state = "after"  # type: ignore[assignment]
            raise error

    with pytest.raises(type(error)) as caught:
        step()
    assert caught.value is error
    return str(caught.value)


@pytest.mark.parametrize("error", [RolloutError("all gone"), WeightSyncError("half an update")])
def test_the_state_of_the_last_finished_step_is_saved_and_the_error_says_so(error):
    saves, said = Saves(), str(error)
    assert fail(run_of(saves, "checkpoint.every=5"), error) == (
        f"{said} (step 3 is saved; continue with `megacov resume here`)"
    )
    assert saves.states == [TrainState(step=3, prompt_position=24)]
    assert saves.rollout_states == ["before"]


def test_nothing_is_saved_where_that_is_not_wanted_or_would_not_help():
    saves = Saves()
    assert fail(run_of(saves, "checkpoint.every=0"), RolloutError("all gone")) == "all gone"
    assert fail(run_of(saves, "checkpoint.every=5"), DataError("no token")) == "no token"
    assert saves.states == []


def test_a_save_that_fails_does_not_hide_why_the_run_ends():
    assert fail(run_of(Saves(fails=True), "checkpoint.every=5"), RolloutError("all gone")) == "all gone"


def test_a_step_whose_weights_cannot_be_pushed_is_recorded_and_saved(monkeypatch):
    """The servers are lost between a step and the next: what was trained is not lost with them."""
    saves, done = Saves(), []

    def push_weights(_policy: object, *, version: int) -> None:
        done.append(f"push {version}")
        raise WeightSyncError("half an update")

    def train_step(
        _policy: object, _rollout: object, _algorithm: object, _settings: object, state: TrainState, **_: Any
    ):
        state.step = 4
        return StepReport({}, None)

    saves.rollout = SimpleNamespace(
        state="before",
        is_under_way=False,
        push_weights=push_weights,
        write_samples=lambda _values, *, step: done.append(f"samples {step}"),
    )
    run = run_of(saves, "checkpoint.every=5", "run.steps=10")
    run.recorder = SimpleNamespace(record=lambda _report, *, step, saves: done.append(f"record {step}"))  # type: ignore[assignment]
    monkeypatch.setattr(loop, "train_step", train_step)
    with pytest.raises(WeightSyncError, match=r"half an update \(step 4 is saved"):
        loop._step(run)
    assert done == ["push 4", "samples 4", "record 4"]
    assert [state.step for state in saves.states] == [4]
