"""The weight of each token in an optimizer step: entropy as a reward, entropy mask, rollout correction, denominator.

The order is fixed, and a stage sees the tokens that the one before left: entropy mask -> rollout correction -> policy
loss -> covariance action. A token that is left out takes no part in covariance or selection either, and keeps its place
in the denominator unless `algorithm.denominator` says "kept". The rollout correction's ratio of a
sequence is over all its loss tokens, whatever was left out.
Runs on the last pipeline stage. Shape legend: n samples of the rollout batch, t response tokens of one micro-batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from megacov.losses import importance_weights, token_weights
from megacov.parallel.collectives import all_reduce_sum
from megacov.parallel.groups import ParallelGroups
from megacov.selection import select_high_entropy
from megacov.trainer.algorithm import Algorithm, EntropyMask, RolloutCorrection
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.soft import soften
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, join, old_log_probs, split_like
from megacov.types import RolloutBatch


@torch.no_grad()
def weigh_tokens(mini_batch: MiniBatch, batch: RolloutBatch, algorithm: Algorithm, groups: ParallelGroups) -> MiniBatch:
    """Decide for each token of one optimizer step whether it takes part, with which advantage and which weight.

    Collectives, on the last stage: with entropy as a reward, those of `soften`; with an entropy mask, dp_cp: those of
    `select_high_entropy`; with a correction by sequence, cp: SUM [2, n] float64; with the denominator "kept", dp_cp:
    SUM [n] float64.

    Args:
        mini_batch: inputs in which every loss token takes part.
        batch: the rollout batch, equal on all ranks.
        algorithm: its soft advantages, entropy mask, rollout correction, aggregation mode and denominator are read.
        groups: this rank's process groups.

    Returns:
        The same mini-batch with final `kept_mask`, `policy_advantages`, `importance` and `token_weights`; unchanged off
        the last stage.
    """
    if not groups.is_last_stage:
        return mini_batch
    num_samples = len(batch.rewards)
    parts = mini_batch.inputs
    if algorithm.soft is not None:
        parts = soften(mini_batch, batch, algorithm.soft, groups)
    if algorithm.entropy_mask is not None:
        parts = _mask_by_entropy(parts, algorithm.entropy_mask, groups)
    if algorithm.rollout_correction is not None:
        parts = _correct(parts, algorithm.rollout_correction, groups, num_samples=num_samples)
    tokens_per_sequence = batch.loss_mask.sum(dim=1)
    if algorithm.denominator == "kept":
        tokens_per_sequence = _count_kept(parts, groups, num_samples=num_samples)
    in_step = tokens_per_sequence[mini_batch.samples.start : mini_batch.samples.stop]
    weighed = [
        replace(
            part,
            token_weights=token_weights(
                part.kept_mask,
                part.sample_index,
                mode=algorithm.aggregation,
                num_tokens=max(1, int(in_step.sum())),
                num_sequences=max(1, int((in_step > 0).sum())),
                tokens_per_sequence=tokens_per_sequence.to(part.kept_mask.device),
                constant_norm=algorithm.constant_norm,
            ),
        )
        for part in parts
    ]
    return replace(mini_batch, inputs=weighed)


def _mask_by_entropy(parts: list[TokenInputs], mask: EntropyMask, groups: ParallelGroups) -> list[TokenInputs]:
    """arXiv 2506.01939: the gradient of the tokens of high entropy alone, or of the others alone."""
    kept, token_ids = join(parts, "kept_mask"), join(parts, "token_ids")
    high = select_high_entropy(join(parts, "entropy"), kept, token_ids, ratio=mask.ratio, group=groups.dp_cp)
    kept = high if mask.keep == "high" else kept & ~high
    return [replace(part, kept_mask=own) for part, own in zip(parts, split_like(kept, parts), strict=True)]


def _correct(
    parts: list[TokenInputs], correction: RolloutCorrection, groups: ParallelGroups, *, num_samples: int
) -> list[TokenInputs]:
    log_ratios = [
        old.double() - part.rollout_log_probs.double() for old, part in zip(old_log_probs(parts), parts, strict=True)
    ]
    if correction.level != "token":
        means = _sequence_totals(parts, log_ratios, groups, num_samples=num_samples, level=correction.level)
        log_ratios = [means[part.sample_index] for part in parts]
    corrected = []
    for part, log_ratio in zip(parts, log_ratios, strict=True):
        weights, is_kept = importance_weights(
            log_ratio, mode=correction.mode, lower=correction.lower, upper=correction.upper
        )
        corrected.append(
            replace(
                part,
                kept_mask=part.kept_mask & is_kept,
                importance=weights,
                # A policy loss is proportional to the advantage, clipped or not, so this weighs the loss and leaves
                # covariance and KL-Cov's penalty as they are.
                policy_advantages=part.advantages * weights,
            )
        )
    return corrected


def _sequence_totals(
    parts: list[TokenInputs], log_ratios: list[Tensor], groups: ParallelGroups, *, num_samples: int, level: str
) -> Tensor:
    """[n] float64: log-ratio of each whole sequence, or its mean over tokens. Tokens that were left out count too."""
    table = torch.zeros(2, num_samples, dtype=torch.float64, device=parts[0].loss_mask.device)
    for part, log_ratio in zip(parts, log_ratios, strict=True):
        values = torch.where(part.loss_mask, log_ratio, 0.0)
        table.index_add_(1, part.sample_index, torch.stack([values, part.loss_mask.double()]))
    # The tokens of a sequence are on one data-parallel rank.
    totals, counts = all_reduce_sum(table, group=groups.cp)
    return totals if level == "sequence" else totals / counts.clamp(min=1)


def _count_kept(parts: list[TokenInputs], groups: ParallelGroups, *, num_samples: int) -> Tensor:
    counts = torch.zeros(num_samples, dtype=torch.float64, device=parts[0].kept_mask.device)
    for part in parts:
        counts.index_add_(0, part.sample_index, part.kept_mask.double())
    return all_reduce_sum(counts, group=groups.dp_cp)
