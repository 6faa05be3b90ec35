"""What is saved when the servers are lost: the run as it was before the step, carried responses included."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megacov.errors import DataError, RolloutError, WeightSyncError
from megacov.trainer.build import Run
from megacov.trainer.state import TrainState


def run_of(*, every: int) -> tuple[Any, list[Any]]:
    """Enough of a run to lose its servers, and what it saves: the state and what is carried, each time."""
    saved: list[Any] = []
    rollout = SimpleNamespace(carried=("before",))
    run = SimpleNamespace(
        config=SimpleNamespace(checkpoint=SimpleNamespace(every=every), run=SimpleNamespace(directory="RUN")),
        state=TrainState(step=3, prompt_position=12),
        rollout=rollout,
        policy=None,
        checkpointer=SimpleNamespace(save_now=lambda _policy, state: saved.append((state, rollout.carried))),
    )
    return run, saved


def fail(run: Any, error: Exception) -> None:
    """As a step that fails after its batch was taken from the data."""
    with Run.saved_if_servers_are_lost(run):
        run.state.prompt_position = 20
        run.rollout.carried = ("after",)
        raise error


@pytest.mark.parametrize("kind", [RolloutError, WeightSyncError])
def test_what_is_saved_is_as_before_the_step(kind):
    run, saved = run_of(every=2)
    with pytest.raises(kind, match="gone .step 3 is saved; go on with `megacov resume RUN`."):
        fail(run, kind("gone"))
    assert saved == [(TrainState(step=3, prompt_position=12), ("before",))]


def test_nothing_is_saved_where_nothing_is_asked_for_or_servers_are_not_the_reason():
    run, saved = run_of(every=0)
    with pytest.raises(RolloutError, match="^gone$"):
        fail(run, RolloutError("gone"))
    run, also_saved = run_of(every=2)
    with pytest.raises(DataError, match="^bad$"):
        fail(run, DataError("bad"))
    assert saved == also_saved == []
