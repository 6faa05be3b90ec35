"""One training step: weights out, samples in, old log-probs, then optimizer steps, then metrics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megacov.data.packing import MicroBatchSettings
from megacov.megatron.logits_reader import TokenStatistics
from megacov.megatron.policy import Policy
from megacov.monitor.breakdown import TokenSums
from megacov.monitor.covariance_metrics import Histogram
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.clock import StepClock
from megacov.trainer.control import observe, steer
from megacov.trainer.next_batch import next_batch
from megacov.trainer.optimizer_step.metrics import collect_metrics
from megacov.trainer.optimizer_step.mini_batch import (
    MiniBatch,
)
from megacov.trainer.optimizer_step.not_finite import Finding, SkippedUpdates, examine_inputs
from megacov.trainer.optimizer_step.old_policy import with_own_forwards
from megacov.trainer.optimizer_step.preparation import prepare_updates
from megacov.trainer.optimizer_step.scope import SelectionScope, make_scope
from megacov.trainer.optimizer_step.theorem import TheoremCheck
from megacov.trainer.optimizer_step.token_report import TokenReport, report_tokens
from megacov.trainer.optimizer_step.update import UpdateOutcome, run_update
from megacov.trainer.rollout.exchange import RolloutExchange
from megacov.trainer.state import TrainState
from megacov.types import RolloutBatch


@dataclass(frozen=True)
class StepReport:
    """What one step has found; equal on all ranks but for times.

    metrics: by tag.
    histogram: of the covariance, where one was due.
    token_values: as in `TokenReport`, where the step is logged.
    vocabulary: sums over the tokens of the vocabulary, where a table of tokens was due.
    """

    metrics: dict[str, float]
    histogram: Histogram | None
    token_values: Tensor | None = None
    vocabulary: TokenSums | None = None


@dataclass(frozen=True)
class StepSettings:
    """Plain values that a step needs.

    num_updates: optimizer steps per rollout batch.
    micro_batches: size and layout of this rank's micro-batches.
    log_every: steps between two computations of the covariance's tails, which take five selections, and of the overlap
        with a selection per micro-batch, which takes one each.
    cov_histogram_every: steps between two histograms of the covariance; 0 for none.
    token_table_every: steps between two tables of tokens; 0 for none.
    shows_tokens: whether RUN/samples gets the values of tokens.
    max_mismatch: bound on the mean |rollout log_prob - trainer's log_prob|; None for no bound. [nats]
    max_skipped_updates: optimizer steps in a row that may be left out because their gradient is not finite.
    log_folder: where rank 0 reports optimizer steps that were left out; None for nowhere.
    last_step: number of the run's last step, from 0.
    samples_ahead: the servers sample the next step's batch while this step trains.
    theorem_every: steps between two comparisons of the predicted and the observed change of entropy, among the steps
        that `log_every` counts; 0 for none.
    theorem_gradient: whether they include the derivative along the optimizer step.
    """

    num_updates: int
    micro_batches: MicroBatchSettings
    log_every: int
    cov_histogram_every: int
    token_table_every: int = 0
    shows_tokens: bool = False
    max_mismatch: float | None = None
    max_skipped_updates: int = 0
    log_folder: Path | None = None
    last_step: int = 0
    samples_ahead: bool = False
    theorem_every: int = 0
    theorem_gradient: bool = False

    def is_due(self, every: int, state: TrainState) -> bool:
        """Whether what comes every so many steps comes in this one; never if it is 0."""
        return every > 0 and (state.step + 1) % every == 0


def train_step(
    policy: Policy,
    rollout: RolloutExchange,
    algorithm: Algorithm,
    settings: StepSettings,
    state: TrainState,
    *,
    clock: StepClock | None = None,
) -> StepReport:
    """Train on one rollout batch. A collective of all ranks.

    Args:
        policy: the policy, updated in place.
        rollout: gives weights to the servers and brings samples back.
        algorithm: loss, selection, weights and advantages, one value of which its controller may set.
        settings: sizes and intervals.
        state: where the run stands; advanced by one step.
        clock: of the step, if its batch was begun before; None begins one.

    Returns:
        Metrics.

    Raises:
        WeightSyncError: the servers hold other weights than the trainer; on every rank.
        NumericsError: too many optimizer steps in a row were not finite; on every rank.
    """
    clock, groups = clock or StepClock(), policy.groups
    clock.resume()
    algorithm = steer(algorithm, state)
    is_logged = settings.is_due(settings.log_every, state)
    is_checked = is_logged and settings.is_due(settings.theorem_every, state)
    is_ahead = settings.samples_ahead and state.step < settings.last_step
    batch, metrics = next_batch(policy, rollout, state, clock, is_ahead=is_ahead)
    with clock.time("log_probs"):
        mini_batches, old = _prepare(policy, batch, algorithm, settings, first_update=state.update, checks=is_checked)
    skipped = SkippedUpdates(
        state, groups, max_in_a_row=settings.max_skipped_updates, log_folder=settings.log_folder, batch=batch
    )
    check = _make_check(policy, mini_batches[0], old, settings) if is_checked else None
    outcomes = run_updates(policy, mini_batches, algorithm, clock=clock, skipped=skipped, check=check)
    mini_batches = with_own_forwards(mini_batches, outcomes, policy)
    with clock.time("metrics"):
        found, histogram = collect_metrics(
            mini_batches,
            outcomes,
            algorithm,
            groups,
            num_samples=len(batch.rewards),
            is_logged=is_logged,
            with_histogram=settings.is_due(settings.cov_histogram_every, state),
        )
        found |= check.metrics() if check is not None else {}
        tokens = _report_tokens(policy, mini_batches, outcomes, batch, rollout.shown, settings, state)
    found |= observe(algorithm, state, found)
    state.advance(num_updates=settings.num_updates)
    metrics |= found | tokens.metrics | clock.metrics(batch, groups)
    return StepReport(metrics, histogram, tokens.values, tokens.vocabulary)


def _prepare(
    policy: Policy,
    batch: RolloutBatch,
    algorithm: Algorithm,
    settings: StepSettings,
    *,
    first_update: int,
    checks: bool,
) -> tuple[list[MiniBatch], list[TokenStatistics | None]]:
    return prepare_updates(
        policy,
        batch,
        algorithm,
        settings.micro_batches,
        num_updates=settings.num_updates,
        first_update=first_update,
        num_checked=settings.micro_batches.count_multiple if checks else 0,
        max_mismatch=settings.max_mismatch,
        first_is_left=True,
    )


def _report_tokens(
    policy: Policy,
    mini_batches: Sequence[MiniBatch],
    outcomes: Sequence[UpdateOutcome],
    batch: RolloutBatch,
    shown: Sequence[int],
    settings: StepSettings,
    state: TrainState,
) -> TokenReport:
    is_logged = settings.is_due(settings.log_every, state)
    has_table = settings.is_due(settings.token_table_every, state)
    if not (is_logged or has_table):
        return TokenReport()
    return report_tokens(
        mini_batches,
        outcomes,
        batch,
        policy.groups,
        shown=shown if is_logged and settings.shows_tokens else (),
        vocab_size=policy.shape.vocab_size if has_table else None,
    )


def _make_check(
    policy: Policy, mini_batch: MiniBatch, old: Sequence[TokenStatistics | None], settings: StepSettings
) -> TheoremCheck:
    return TheoremCheck(
        policy,
        mini_batch,
        old,
        num_micro_batches=settings.micro_batches.count_multiple,
        with_gradient=settings.theorem_gradient,
    )


def run_updates(
    policy: Policy,
    mini_batches: Sequence[MiniBatch],
    algorithm: Algorithm,
    *,
    clock: StepClock,
    skipped: SkippedUpdates | None = None,
    check: TheoremCheck | None = None,
) -> list[UpdateOutcome]:
    """Select and update, mini-batch by mini-batch.

    An optimizer step whose gradient is not finite is left out: the next one sees the same policy.

    Args:
        policy: the policy, updated in place.
        mini_batches: the rollout batch, with token inputs and weights.
        algorithm: loss and selection.
        clock: receives the seconds of "selection", "update" and, with a check, "theorem".
        skipped: counts optimizer steps that are left out; by default the first ends the run.
        check: measures the entropy around the first optimizer step; None for no measurement.

    Returns:
        The outcome of each optimizer step.

    Raises:
        NumericsError: too many in a row were left out; on every rank.
    """
    skipped = skipped or SkippedUpdates(TrainState(), policy.groups, max_in_a_row=0)
    scope = make_scope(algorithm, policy.groups)
    with clock.time("selection") if scope.is_timed else nullcontext():
        selections = scope.before_batch(mini_batches)
    outcomes: list[UpdateOutcome] = []
    for i, mini_batch in enumerate(mini_batches):
        # The server's log-probs, as old ones, are never those of this policy's own forwards.
        is_on_policy = not (algorithm.rollout_is_old or any(outcome.result.is_applied for outcome in outcomes))
        with clock.time("selection") if scope.is_timed else nullcontext():
            selection = selections[i] or scope.before_update(policy, mini_batch, is_on_policy=is_on_policy)
        checked = check if i == 0 else None
        if checked is not None:
            with clock.time("theorem"):
                checked.before_update()
        with clock.time("update"):
            outcome = run_update(policy, mini_batch, scope, algorithm, selection=selection, is_on_policy=is_on_policy)
        skipped.count(outcome.result, _all_findings(outcome, scope, mini_batches, i), update=mini_batch.update)
        if checked is not None and outcome.result.is_applied:
            with clock.time("theorem"):
                checked.after_update()
        outcomes.append(outcome)
    return outcomes


def _all_findings(
    outcome: UpdateOutcome, scope: SelectionScope, mini_batches: Sequence[MiniBatch], index: int
) -> tuple[Finding, ...]:
    """A selection that was spoiled may have been spoiled by any mini-batch that it was made over."""
    if outcome.result.is_applied:
        return ()
    others = [i for i in scope.mini_batches_of(index, len(mini_batches)) if i != index]
    return outcome.findings + tuple(finding for i in others for finding in examine_inputs(mini_batches[i].inputs))
