"""Where covariance, entropy and selection are in a rollout batch, and the values of the tokens that people look at.

Shape legend: t response tokens of this rank, f values of a token, u response tokens of the shown samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, nan

import torch
from torch import Tensor

from megacov.monitor.breakdown import (
    TokenSums,
    accuracy_classes,
    breakdown_metrics,
    group_accuracies,
    position_classes,
    token_sums,
)
from megacov.monitor.breakdown_tags import ACCURACY_CLASSES, POSITION_CLASSES
from megacov.ops import covariance
from megacov.parallel.collectives import all_reduce_sum, broadcast_tensor
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import from_last_stage
from megacov.trainer.optimizer_step.mini_batch import MiniBatch, all_inputs, all_micro_batches
from megacov.trainer.optimizer_step.token_inputs import join
from megacov.trainer.optimizer_step.update import UpdateOutcome
from megacov.types import RolloutBatch

TOKEN_VALUES = ("log_probs", "entropy", "covariance", "mismatch", "selected", "kept")
"""Rows of `TokenReport.values`, as `megacov.monitor.samples` describes them."""


@dataclass(frozen=True)
class TokenReport:
    """What the last pipeline stage knows of single tokens, on all ranks.

    metrics: `cov_by_accuracy/*` and `cov_by_position/*`, the finite ones.
    values: [f, u] float32 on the CPU, the shown samples one behind another; None if none were asked for.
    vocabulary: sums over the tokens of the vocabulary, on the CPU; None if not asked for.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    values: Tensor | None = None
    vocabulary: TokenSums | None = None


@dataclass(frozen=True)
class _Tokens:
    """The response tokens of this rank, all [t]."""

    log_probs: Tensor
    entropy: Tensor
    cov: Tensor
    mismatch: Tensor
    selected: Tensor
    loss_mask: Tensor
    kept: Tensor
    sample_index: Tensor
    positions: Tensor


@torch.no_grad()
def report_tokens(
    mini_batches: Sequence[MiniBatch],
    outcomes: Sequence[UpdateOutcome],
    batch: RolloutBatch,
    groups: ParallelGroups,
    *,
    shown: Sequence[int] = (),
    vocab_size: int | None = None,
) -> TokenReport:
    """Describe the tokens of a rollout batch under the policy before its first optimizer step.

    Collectives: on the last stage, dp_cp: those of `covariance` and `token_sums`, then with `shown` SUM [f, u] float32;
    then pp: `from_last_stage`, with `shown` `broadcast_tensor`, with `vocab_size` `broadcast_tensor`.

    Args:
        mini_batches: the rollout batch as it was trained on; without inputs off the last stage.
        outcomes: one a mini-batch; tokens that were selected in one that was left out do not count as selected.
        batch: the rollout batch, equal on all ranks.
        groups: this rank's process groups.
        shown: rows of the rollout batch whose tokens are wanted one by one; the same on all ranks.
        vocab_size: number of different tokens, for sums over each of them; None for no such sums.

    Returns:
        The report, equal on all ranks and in every layout.
    """
    metrics: dict[str, float] = {}
    values = sums = None
    if groups.is_last_stage:
        tokens = _join(mini_batches, outcomes, batch, groups)
        divisions = [
            (_accuracies(batch).to(tokens.kept.device)[tokens.sample_index], len(ACCURACY_CLASSES)),
            (position_classes(tokens.positions), len(POSITION_CLASSES)),
        ]
        if vocab_size is not None:
            divisions.append((_token_of_vocabulary(mini_batches).to(tokens.kept.device), vocab_size))
        by_accuracy, by_position, *rest = token_sums(
            divisions,
            entropy=tokens.entropy,
            cov=tokens.cov,
            loss_mask=tokens.loss_mask,
            kept_mask=tokens.kept,
            selected=tokens.selected,
            group=groups.dp_cp,
        )
        has_selection = any(outcome.selection is not None for outcome in outcomes)
        for section, part, classes in (
            ("cov_by_accuracy", by_accuracy, ACCURACY_CLASSES),
            ("cov_by_position", by_position, POSITION_CLASSES),
        ):
            metrics |= breakdown_metrics(part, section=section, names=list(classes), has_selection=has_selection)
        values = _values_of(tokens, shown, batch, groups) if shown else None
        sums = torch.stack(list(rest[0])) if rest else None
    metrics = from_last_stage({tag: value for tag, value in metrics.items() if isfinite(value)}, groups)
    return TokenReport(
        metrics,
        _to_all_stages(values, groups) if shown else None,
        None if vocab_size is None else TokenSums(*_to_all_stages(sums, groups)),
    )


def _to_all_stages(tensor: Tensor | None, groups: ParallelGroups) -> Tensor:
    return broadcast_tensor(tensor, src_rank=groups.pp_size - 1, group=groups.pp).cpu()


def _join(
    mini_batches: Sequence[MiniBatch], outcomes: Sequence[UpdateOutcome], batch: RolloutBatch, groups: ParallelGroups
) -> _Tokens:
    inputs = all_inputs(mini_batches)
    own, advantages, kept = (join(inputs, name) for name in ("trainer_log_probs", "advantages", "kept_mask"))
    return _Tokens(
        log_probs=own,
        entropy=join(inputs, "entropy"),
        cov=covariance(own, advantages, kept, group=groups.dp_cp),
        mismatch=join(inputs, "rollout_log_probs").double() - own.double(),
        selected=torch.cat([_selected(*pair) for pair in zip(mini_batches, outcomes, strict=True)]),
        loss_mask=join(inputs, "loss_mask"),
        kept=kept,
        sample_index=join(inputs, "sample_index"),
        positions=join(inputs, "token_ids") % batch.max_response_length,
    )


def _selected(mini_batch: MiniBatch, outcome: UpdateOutcome) -> Tensor:
    """[tokens of the mini-batch] bool."""
    if outcome.selection is None or not outcome.result.is_applied:
        return torch.zeros_like(join(mini_batch.inputs, "kept_mask"))
    return torch.cat(outcome.selection.masks)


def _accuracies(batch: RolloutBatch) -> Tensor:
    """[n] int64, class of the accuracy of each sample's group."""
    rewards = batch.rewards if batch.verdicts is None else batch.verdicts
    return accuracy_classes(group_accuracies(rewards, batch.group_ids))


def _token_of_vocabulary(mini_batches: Sequence[MiniBatch]) -> Tensor:
    """[t] int64 on the CPU: which token of the vocabulary each response token is."""
    return torch.cat([part.targets.flatten()[part.predicting] for part in all_micro_batches(mini_batches)])


def _values_of(tokens: _Tokens, shown: Sequence[int], batch: RolloutBatch, groups: ParallelGroups) -> Tensor:
    """[f, u] float32 on this rank's device. A token is on one rank of dp_cp, and the others add 0."""
    rows = torch.tensor(list(shown))
    lengths = batch.response_lengths[rows]
    starts = torch.full((len(batch.rewards),), -1)
    starts[rows] = lengths.cumsum(0) - lengths
    start = starts.to(tokens.kept.device)[tokens.sample_index]
    here = start >= 0
    cov = tokens.cov.where(tokens.kept, nan)
    rows_of_values = (tokens.log_probs, tokens.entropy, cov, tokens.mismatch, tokens.selected, tokens.kept)
    values = torch.zeros(len(TOKEN_VALUES), int(lengths.sum()), device=start.device)
    values[:, (start + tokens.positions)[here]] = torch.stack([row[here].float() for row in rows_of_values])
    return all_reduce_sum(values, group=groups.dp_cp)
