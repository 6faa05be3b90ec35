"""One training step, phase by phase: weights out, samples in, old log-probs, updates, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from megacov.advantages import group_relative
from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import plan_micro_batches, update_ranges
from megacov.megatron.policy import Policy
from megacov.monitor.covariance_metrics import Histogram
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.clock import PhaseClock
from megacov.trainer.optimizer_step.metrics import collect_metrics
from megacov.trainer.optimizer_step.mismatch import check_mismatch
from megacov.trainer.optimizer_step.not_finite import SkippedUpdates, examine_inputs
from megacov.trainer.optimizer_step.selection import Selection, select_tokens, split_selection
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, make_token_inputs
from megacov.trainer.optimizer_step.update import Occasion, UpdateOutcome, run_update, select_for_update
from megacov.trainer.optimizer_step.weighting import compose
from megacov.trainer.rollout.exchange import RolloutPhase
from megacov.trainer.state import TrainState
from megacov.types import MicroBatch, RolloutBatch


@dataclass(frozen=True)
class StepReport:
    """Metrics of one step by tag, and the covariance histogram where one was due; equal on all ranks but for times."""

    metrics: dict[str, float]
    histogram: Histogram | None


@dataclass(frozen=True)
class StepSettings:
    """Plain values that a step needs.

    num_updates: optimizer steps of one rollout batch.
    micro_batch_tokens: positions of one forward pass, at most.
    layout: of the sequences in a forward pass, on this rank.
    count_multiple: of the number of micro-batches of an optimizer step.
    same_count: that number is the same on all data-parallel ranks.
    seed: of the run.
    log_every: steps between two computations of the covariance's tails, which take five selections, and of the overlap
        with a selection per micro-batch, which takes one each.
    cov_histogram_every: steps between two histograms of the covariance; 0 for none.
    max_mismatch: of the servers' log-probs and the trainer's; None for any. [nats]
    max_skipped_updates: optimizer steps in a row that may be left out because their gradient is not finite.
    log_folder: where rank 0 writes why; None for nowhere.
    last_step: of the run, from 0.
    samples_ahead: the batch of the next step is sampled while this step trains.
    """

    num_updates: int
    micro_batch_tokens: int
    layout: SequenceLayout
    seed: int
    log_every: int
    cov_histogram_every: int
    count_multiple: int = 1
    max_mismatch: float | None = None
    max_skipped_updates: int = 0
    log_folder: Path | None = None
    same_count: bool = False
    last_step: int = 0
    samples_ahead: bool = False


@dataclass(frozen=True)
class PlannedUpdate:
    """One optimizer step of a rollout batch on this rank. `inputs` is empty off the last pipeline stage."""

    micro_batches: list[MicroBatch]
    inputs: list[TokenInputs]


def plan_updates(
    policy: Policy, batch: RolloutBatch, algorithm: Algorithm, settings: StepSettings
) -> list[PlannedUpdate]:
    """Cut a rollout batch into optimizer steps; find old log-probs and entropy of every token, and what each counts.

    All micro-batches of all optimizer steps go through the pipeline in one pass.

    Args:
        policy: before the first update.
        batch: the rollout batch.
        algorithm: the resolved algorithm.
        settings: batch sizes.

    Returns:
        The optimizer steps, in order.
    """
    plan = plan_micro_batches(
        batch,
        num_updates=settings.num_updates,
        micro_batch_tokens=settings.micro_batch_tokens,
        dp_rank=policy.groups.dp_rank,
        dp_size=policy.groups.dp_size,
        layout=settings.layout,
        count_multiple=settings.count_multiple,
        same_count=settings.same_count,
    )
    everything = list(chain.from_iterable(plan))
    statistics = iter(policy.log_probs(everything, with_entropy_t1=True))
    reference = iter(policy.reference_log_probs(everything)) if algorithm.ref_kl_coef > 0 else None
    advantages = group_relative(batch.rewards, batch.group_ids, normalize_std=algorithm.normalize_std)
    ranges = update_ranges(len(batch.rewards), num_updates=settings.num_updates)
    updates = []
    for micro_batches, samples in zip(plan, ranges, strict=True):
        inputs = []
        if policy.groups.is_last_stage:
            inputs = make_token_inputs(
                batch,
                micro_batches,
                [next(statistics) for _ in micro_batches],
                None if reference is None else [next(reference) for _ in micro_batches],
                advantages=advantages,
            )
            inputs = compose(inputs, batch, samples, algorithm, policy.groups)
        updates.append(PlannedUpdate(micro_batches, inputs))
    return updates


def select_for_rollout_batch(
    policy: Policy, updates: Sequence[PlannedUpdate], algorithm: Algorithm, *, seed: int, update: int
) -> list[Selection | None]:
    """Selections in `rollout_batch` scope: made once, before the first update, where current and old policy are one.

    Args:
        policy: the policy.
        updates: of the rollout batch.
        algorithm: the resolved algorithm.
        seed: of the run.
        update: number of the first optimizer step in the run.

    Returns:
        One selection an optimizer step on the last stage, None on the others.
    """
    if not policy.groups.is_last_stage:
        return [None] * len(updates)
    inputs = [part for planned in updates for part in planned.inputs]
    log_probs = [part.old_log_probs for part in inputs]
    whole = select_tokens(inputs, log_probs, algorithm, seed=seed, update=update, group=policy.groups.dp_cp)
    return list(split_selection(whole, [len(planned.inputs) for planned in updates]))


def run_updates(
    policy: Policy,
    updates: Sequence[PlannedUpdate],
    algorithm: Algorithm,
    *,
    seed: int,
    first_update: int,
    clock: PhaseClock,
    skipped: SkippedUpdates | None = None,
) -> list[UpdateOutcome]:
    """Select and step, optimizer step by optimizer step.

    One whose gradient is not finite is left out: the next sees the policy that it saw.

    Args:
        policy: the policy.
        updates: of the rollout batch.
        algorithm: the resolved algorithm.
        seed: of the run.
        first_update: number of the first of them in the run.
        clock: of the step.
        skipped: counts those that are left out; by default the first ends the run.

    Returns:
        What each did.

    Raises:
        NumericsError: too many in a row were left out; on every rank.
    """
    skipped = skipped or SkippedUpdates(TrainState(), policy.groups, max_in_a_row=0)
    selections: list[Selection | None] = [None] * len(updates)
    if algorithm.select is not None and algorithm.scope == "rollout_batch":
        with clock.phase("selection"):
            selections = select_for_rollout_batch(policy, updates, algorithm, seed=seed, update=first_update)
    outcomes: list[UpdateOutcome] = []
    for i, planned in enumerate(updates):
        is_first = not any(outcome.result.is_applied for outcome in outcomes)
        which = Occasion(is_first=is_first, seed=seed, update=first_update + i)
        selection = selections[i]
        if algorithm.select is not None and algorithm.scope == "mini_batch":
            with clock.phase("selection"):
                selection = select_for_update(policy, planned.micro_batches, planned.inputs, algorithm, which)
        with clock.phase("update"):
            outcomes.append(run_update(policy, planned.micro_batches, planned.inputs, selection, algorithm, which))
        findings = outcomes[-1].findings
        if not outcomes[-1].result.is_applied and algorithm.scope == "rollout_batch":
            # What spoiled the one selection of them all may be in any of them.
            others = [other for j, other in enumerate(updates) if j != i]
            findings += tuple(finding for other in others for finding in examine_inputs(other.inputs))
        skipped.count(outcomes[-1].result, findings, update=which.update)
    return outcomes


def next_batch(
    policy: Policy, rollout: RolloutPhase, settings: StepSettings, state: TrainState, clock: PhaseClock
) -> tuple[RolloutBatch, dict[str, float]]:
    """The batch to train on; where batches are sampled ahead, the one after it is begun. A collective of all ranks.

    Args:
        policy: the policy.
        rollout: prompts, servers and verifier.
        settings: plain values.
        state: where the run stands; its data position is advanced.
        clock: of the step.

    Returns:
        The batch and its metrics: of the current weights, or, where it was begun a step ago, of those before.
    """
    collected = None
    while collected is None:
        if not rollout.is_under_way:
            with clock.phase("weight_sync", has_deadlines=True):
                rollout.push_weights(policy, version=state.weight_version)
            rollout.begin(state, step=state.step)
        with clock.phase("rollout", has_deadlines=True):
            collected = rollout.collect(state)
    if settings.samples_ahead and state.step < settings.last_step:
        with clock.phase("weight_sync", has_deadlines=True):
            rollout.push_weights(policy, version=state.weight_version)
        rollout.begin(state, step=state.step + 1)
    return collected


def train_step(
    policy: Policy, rollout: RolloutPhase, algorithm: Algorithm, settings: StepSettings, state: TrainState
) -> StepReport:
    """The whole step. A collective of all ranks.

    Args:
        policy: the policy.
        rollout: prompts, servers and verifier.
        algorithm: the resolved algorithm.
        settings: plain values.
        state: where the run stands; advanced here.

    Returns:
        Metrics.
    """
    clock = PhaseClock()
    batch, metrics = next_batch(policy, rollout, settings, state, clock)
    with clock.phase("log_probs"):
        updates = plan_updates(policy, batch, algorithm, settings)
        inputs = [part for planned in updates for part in planned.inputs]
        check_mismatch(inputs, policy.groups, max_mismatch=settings.max_mismatch)
    skipped = SkippedUpdates(
        state,
        policy.groups,
        max_in_a_row=settings.max_skipped_updates,
        log_folder=settings.log_folder,
        batch=batch,
    )
    outcomes = run_updates(
        policy, updates, algorithm, seed=settings.seed, first_update=state.update, clock=clock, skipped=skipped
    )
    with clock.phase("metrics"):
        found, histogram = collect_metrics(
            [planned.inputs for planned in updates],
            outcomes,
            algorithm,
            policy.groups,
            num_samples=len(batch.rewards),
            seed=settings.seed,
            first_update=state.update,
            is_logged=(state.step + 1) % settings.log_every == 0,
            with_histogram=settings.cov_histogram_every > 0 and (state.step + 1) % settings.cov_histogram_every == 0,
        )
    metrics |= found
    metrics |= clock.metrics(batch, policy.groups)
    state.advance(num_updates=settings.num_updates)
    return StepReport(metrics, histogram)
