"""Metrics of a training step, computed where the log-probs are: on the last pipeline stage.

Every function but the first is a collective of dp_cp on that stage. Results are equal on all of its ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from math import isfinite

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megacov.monitor.covariance_metrics import (
    Histogram,
    covariance_histogram,
    covariance_metrics,
    selection_metrics,
)
from megacov.monitor.metrics import entropy_means, masked_means, mismatch_metrics, policy_means
from megacov.ops import covariance
from megacov.parallel.collectives import all_reduce_sum
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import from_last_stage
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.mini_batch import MiniBatch, all_inputs
from megacov.trainer.optimizer_step.not_finite import without_tokens
from megacov.trainer.optimizer_step.scope import make_scope
from megacov.trainer.optimizer_step.selection import Selection, concatenate, select_each
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, join, join_if_known
from megacov.trainer.optimizer_step.uninformative import count_uninformative
from megacov.trainer.optimizer_step.update import UpdateOutcome

Metrics = dict[str, float]


def collect_metrics(
    mini_batches: Sequence[MiniBatch],
    outcomes: Sequence[UpdateOutcome],
    algorithm: Algorithm,
    groups: ParallelGroups,
    *,
    num_samples: int,
    is_logged: bool,
    with_histogram: bool,
) -> tuple[Metrics, Histogram | None]:
    """All metrics of the last stage, on all ranks. Values that are not finite are absent, and optimizer steps that
    were left out do not count.

    Collectives: on the last stage, dp_cp and cp: those of the functions below; then pp: `from_last_stage`.

    Args:
        mini_batches: the rollout batch as it was trained on; without inputs off the last stage.
        outcomes: one a mini-batch.
        algorithm: its selection is made once more in each micro-batch, for the overlap.
        groups: this rank's process groups.
        num_samples: rows of the rollout batch.
        is_logged: whether to compute metrics that take further selections.
        with_histogram: whether to make the histogram of the covariance.

    Returns:
        Values by tag; and the histogram or None.
    """
    applied = [i for i, outcome in enumerate(outcomes) if outcome.result.is_applied]
    metrics, histogram = Metrics(), None
    if groups.is_last_stage:
        selections = [_effective(outcome) for outcome in outcomes if outcome.selection is not None]
        metrics, histogram = batch_metrics(
            all_inputs(mini_batches),
            selections,
            compared=_compared(mini_batches, algorithm),
            num_samples=num_samples,
            group=groups.dp_cp,
            with_covariance=is_logged,
            with_histogram=with_histogram,
        )
        if applied:
            kept = join(all_inputs([mini_batches[i] for i in applied]), "kept_mask")
            made, names = [outcomes[i] for i in applied], algorithm.loss.metrics.keys()
            metrics |= update_metrics(made, kept, names, group=groups.dp_cp)
        metrics |= count_uninformative(outcomes, algorithm, groups)
        if applied and selections:
            # The last applied step is the farthest from the old policy.
            scope = make_scope(algorithm, groups)
            places = scope.mini_batches_of(applied[-1], len(outcomes))
            metrics |= selection_step_metrics(
                concatenate([found for i in places if (found := outcomes[i].selection) is not None]),
                [mini_batches[i] for i in places],
                algorithm,
                groups=groups,
                is_global=scope.is_global,
                with_overlap=is_logged,
            )
    metrics, histogram = _finite(metrics, histogram, groups)
    metrics |= selection_costs(outcomes) | {"health/skipped_updates": float(len(outcomes) - len(applied))}
    return metrics, histogram


def selection_costs(outcomes: Sequence[UpdateOutcome]) -> Metrics:
    """How optimizer steps that select by current log-probs got them, other than the old ones; no collectives.

    Args:
        outcomes: of a rollout batch.

    Returns:
        `perf/selection_*` by tag; nothing if no optimizer step had to.
    """
    kept = [outcome.kept_positions for outcome in outcomes if outcome.kept_positions is not None]
    if not kept:
        return {}
    shares = [outcome.corrected_share for outcome in outcomes if outcome.corrected_share is not None]
    metrics = {
        "perf/selection_deferred": sum(positions > 0 for positions in kept) / len(kept),
        "perf/selection_kept_positions": float(max(kept)),
        "perf/selection_corrected": len(shares) / len(kept),
    }
    return metrics | ({"perf/selection_correction_share": sum(shares) / len(shares)} if shares else {})


def _finite(metrics: Metrics, histogram: Histogram | None, groups: ParallelGroups) -> tuple[Metrics, Histogram | None]:
    """The finite ones of the last stage's metrics, on all ranks."""
    finite = {tag: value for tag, value in metrics.items() if isfinite(value)}
    is_drawn = histogram is not None and isfinite(histogram.total)
    finite, drawn = from_last_stage((finite, asdict(histogram) if histogram and is_drawn else None), groups)
    return finite, None if drawn is None else Histogram(**drawn)


def _effective(outcome: UpdateOutcome) -> Selection:
    assert outcome.selection is not None
    return outcome.selection if outcome.result.is_applied else without_tokens(outcome.selection)


def _floats(metrics: dict[str, Tensor]) -> Metrics:
    """To the host in one transfer."""
    if not metrics:
        return {}
    values = torch.stack([value.double() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def batch_metrics(
    inputs: Sequence[TokenInputs],
    selections: Sequence[Selection],
    *,
    compared: Sequence[TokenInputs],
    num_samples: int,
    group: ProcessGroup | None,
    with_covariance: bool,
    with_histogram: bool,
) -> tuple[Metrics, Histogram | None]:
    """Entropy, mismatch and covariance of the whole rollout batch, under the policy of `trainer_log_probs`.

    Collectives: group: those of `entropy_means`, `mismatch_metrics`, `masked_means`, `covariance`, then as asked for
    those of `covariance_metrics` and `covariance_histogram`, in that order.

    Args:
        inputs: of all micro-batches of this rank.
        selections: of all optimizer steps, or none.
        compared: micro-batches whose log-probs are compared with the server's.
        num_samples: of the rollout batch.
        group: dp_cp.
        with_covariance: whether to compute `cov/*`.
        with_histogram: whether to make the histogram of the covariance.

    Returns:
        `entropy/*`, `rollout/mismatch_*`, `rollout/importance_weight`, `policy/kept_fraction`, with entropy as a reward
        `policy/*advantage_abs`, `cov/*` and `selection/quadrant_*`; and the histogram or None.
    """
    loss_mask, own = join(inputs, "loss_mask"), join(inputs, "trainer_log_probs")
    advantages, kept = join(inputs, "advantages"), join(inputs, "kept_mask")
    soft = join_if_known(inputs, "soft_part")
    softened = {} if soft is None else {"policy/advantage_abs": advantages, "policy/soft_advantage_abs": soft}
    metrics = entropy_means(
        _entropies(inputs), join(inputs, "sample_index"), loss_mask, num_samples=num_samples, group=group
    )
    pair = (join(compared, name) for name in ("trainer_log_probs", "rollout_log_probs", "loss_mask"))
    metrics |= mismatch_metrics(*pair, group=group)
    metrics |= masked_means(
        {
            "policy/kept_fraction": (kept, loss_mask),
            "rollout/importance_weight": (join(inputs, "importance"), loss_mask),
            **{tag: (values.abs(), loss_mask) for tag, values in softened.items()},
        },
        group=group,
    )
    cov = covariance(own, advantages, kept, group=group)
    if with_covariance:
        metrics |= covariance_metrics(
            cov,
            own,
            advantages,
            kept,
            join(inputs, "token_ids"),
            group=group,
            selected=torch.cat(concatenate(selections).masks) if selections else None,
        )
    histogram = covariance_histogram(cov, kept, group=group) if with_histogram else None
    return _floats(metrics), histogram


def _entropies(inputs: Sequence[TokenInputs]) -> dict[str, Tensor]:
    """By the suffix of their tags; without those at temperature 1 where they are unknown."""
    found = {"": join_if_known(inputs, "entropy"), "_t1": join_if_known(inputs, "entropy_t1")}
    return {suffix: values for suffix, values in found.items() if values is not None}


def _compared(mini_batches: Sequence[MiniBatch], algorithm: Algorithm) -> list[TokenInputs]:
    """Micro-batches whose log-probs tell the trainer from the server, and not one optimizer step from the next."""
    return all_inputs(mini_batches[:1] if algorithm.rollout_is_old else mini_batches)


def update_metrics(
    outcomes: Sequence[UpdateOutcome], kept: Tensor, declared: Collection[str], *, group: ProcessGroup | None
) -> Metrics:
    """Policy metrics over the optimizer steps of a rollout batch that were made.

    Collectives: group: SUM [2] of loss and tokens; those of `policy_means`.

    Args:
        outcomes: of these optimizer steps, at least one.
        kept: [t] bool, the tokens of this rank that took part in them.
        declared: names of the loss's own metrics, of which it may yield some in some calls alone. Every rank sends all
            of them, so that messages have one size; a metric that no call has yielded is absent.
        group: dp_cp.

    Returns:
        `policy/*`: token means; the mean over optimizer steps of loss and gradient norm; the last learning rate.
    """
    outputs = [output for outcome in outcomes for output in outcome.result.outputs]
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=outputs[0].loss.device))
    for output in outputs:
        for name, value in output.metrics.items():
            sums[name] = sums[name] + value
    zero = torch.zeros((), dtype=torch.float64, device=outputs[0].loss.device)
    is_yielded = {f"{name}?": zero + (name in sums) for name in declared}
    sums.update({name: zero for name in declared if name not in sums})
    loss = torch.stack([output.loss.double() for output in outputs]).sum()
    loss, num_tokens = all_reduce_sum(torch.stack([loss, kept.sum().double()]), group=group)
    metrics = policy_means({**sums, **is_yielded}, num_tokens=num_tokens, group=group)
    metrics["policy/loss"] = loss / len(outcomes)
    results = [outcome.result for outcome in outcomes]
    means = {
        "policy/grad_norm": sum(result.grad_norm for result in results) / len(results),
        "policy/lr": results[-1].lr,
    }
    values = _floats(metrics)
    absent = [f"policy/{name}" for name in declared if not values.pop(f"policy/{name}?")]
    return {tag: value for tag, value in values.items() if tag not in absent} | means


def selection_step_metrics(
    selection: Selection,
    mini_batches: Sequence[MiniBatch],
    algorithm: Algorithm,
    *,
    groups: ParallelGroups,
    is_global: bool,
    with_overlap: bool,
) -> Metrics:
    """Metrics of one selection, and how much of it a selection in each micro-batch would have found.

    Collectives: cp: those of a selection in each micro-batch; dp_cp: those of `selection_metrics`.

    Args:
        selection: over its whole scope.
        mini_batches: those in scope.
        algorithm: selector and hyperparameters.
        groups: this rank's process groups.
        is_global: whether all ranks and micro-batches competed.
        with_overlap: whether to select in each micro-batch too.

    Returns:
        `selection/*`; threshold, margin, overlap and what the method has found only of a global selection.
    """
    assert algorithm.select is not None
    inputs, local = all_inputs(mini_batches), None
    if is_global and with_overlap:
        known, update = (selection.log_probs, selection.entropies), mini_batches[0].update
        each = select_each(inputs, *known, algorithm, update=update, group=groups.cp)
        local = torch.cat(each.masks)
    is_random = algorithm.select.candidates is not None
    metrics = selection_metrics(
        torch.cat(selection.masks),
        join(inputs, "kept_mask"),
        group=groups.dp_cp,
        scores=torch.cat(selection.scores) if is_global and algorithm.select.ranks else None,
        candidates=torch.cat(selection.candidates) if is_random else None,
        micro_batch_selected=local,
    )
    found = selection.found if is_global else {}
    return _floats(metrics | {f"selection/{name}": value for name, value in found.items()})
