"""What a controller makes of a rollout batch, in any parallel layout."""

from __future__ import annotations

from megacov.megatron.policy import Policy
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.clock import StepClock
from megacov.trainer.control import observe, steer
from megacov.trainer.optimizer_step.metrics import collect_metrics
from megacov.trainer.state import TrainState
from megacov.trainer.step import StepSettings, run_updates
from megacov.types import RolloutBatch
from tests.support.policies import prepare_mini_batches


def after_a_step(policy: Policy, batch: RolloutBatch, algorithm: Algorithm, settings: StepSettings) -> Algorithm:
    """With a controller: train a step, and return the algorithm as the controller sets it for the next one."""
    if algorithm.control is None:
        return algorithm
    state = TrainState()
    algorithm = steer(algorithm, state)
    updates = prepare_mini_batches(policy, batch, algorithm, settings)
    outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
    found, _ = collect_metrics(
        updates,
        outcomes,
        algorithm,
        policy.groups,
        num_samples=len(batch.rewards),
        is_logged=False,
        with_histogram=False,
    )
    observe(algorithm, state, found)
    assert state.control is not None and state.control.measured is not None
    changed = steer(algorithm, state)
    assert changed != algorithm, "the controller has changed nothing"
    return changed
