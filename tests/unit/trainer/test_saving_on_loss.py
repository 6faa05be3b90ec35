"""The checkpoint that is saved when the rollout servers are lost: the last finished step, with carried groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megacov.config import load_config
from megacov.errors import CheckpointError, DataError, MegacovError, RolloutError, WeightSyncError
from megacov.trainer.build import Run
from megacov.trainer.state import TrainState


class Saves:
    """In place of a checkpointer: keeps what it is given, or fails."""

    run_folder = Path("here")

    def __init__(self, *, fails: bool = False) -> None:
        self.states: list[TrainState] = []
        self.rollout_states: list[str] = []
        self.rollout = SimpleNamespace(state="before")
        self.fails = fails

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
