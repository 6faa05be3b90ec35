"""Weights out and samples in: how a batch begins, and how a step gets its own."""

from __future__ import annotations

from megacov.megatron.policy import Policy
from megacov.trainer.clock import StepClock
from megacov.trainer.rollout.exchange import RolloutExchange
from megacov.trainer.state import TrainState
from megacov.types import RolloutBatch


def next_batch(
    policy: Policy, rollout: RolloutExchange, state: TrainState, clock: StepClock, *, is_ahead: bool
) -> tuple[RolloutBatch, dict[str, float]]:
    """Wait for this step's batch, and let the servers begin the one after it if batches are sampled ahead.

    A collective of all ranks.

    Args:
        policy: its weights go to the servers.
        rollout: gives weights to the servers and brings samples back.
        state: where the run stands; its data position is advanced.
        clock: receives the seconds of "weight_sync" and "rollout".
        is_ahead: whether the servers sample the next step's batch while this step trains.

    Returns:
        The batch and its metrics. It was sampled from the current weights, or from those a step before if ahead.
    """
    collected = None
    while collected is None:
        if not rollout.is_under_way:
            begin_batch(policy, rollout, state, clock, step=state.step)
        with clock.time("rollout", has_deadlines=True):
            collected = rollout.collect(state)
    if is_ahead:
        begin_batch(policy, rollout, state, clock, step=state.step + 1)
    return collected


def begin_batch(policy: Policy, rollout: RolloutExchange, state: TrainState, clock: StepClock, *, step: int) -> None:
    """Give the servers the current weights, and let them begin to sample a batch. A collective of all ranks.

    Args:
        policy: its weights go to the servers.
        rollout: gives weights to the servers, and has no batch under way.
        state: where the run stands.
        clock: receives the seconds of "weight_sync".
        step: step that will train on the batch, from 0.
    """
    with clock.time("weight_sync", has_deadlines=True):
        rollout.push_weights(policy, version=state.weight_version)
    rollout.begin(state, step=step)
