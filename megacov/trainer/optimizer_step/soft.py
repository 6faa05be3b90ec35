"""Entropy as a reward of each token, before anything is selected or weighed. Runs on the last pipeline stage."""

from __future__ import annotations

from dataclasses import replace

import torch

from megacov.advantages import soft_advantages
from megacov.ops import future_sums, masked_mean
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.algorithm import SoftAdvantages
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, join, split_like
from megacov.types import RolloutBatch


@torch.no_grad()
def soften(
    mini_batch: MiniBatch, batch: RolloutBatch, settings: SoftAdvantages, groups: ParallelGroups
) -> list[TokenInputs]:
    """Give every token its own advantage, by the old policy.

    Collectives: unless the discount is 0, cp: those of `future_sums`; dp_cp: those of `masked_mean`.

    Args:
        mini_batch: inputs whose old log-probs and entropies are known.
        batch: the rollout batch, equal on all ranks.
        settings: coefficient and discount.
        groups: this rank's process groups.

    Returns:
        The inputs with other `advantages` and `policy_advantages`, and what was added to them as `soft_part`.
    """
    parts, samples, longest = mini_batch.inputs, mini_batch.samples, batch.max_response_length
    entropy, mask = join(parts, "entropy"), join(parts, "loss_mask")
    future = torch.zeros_like(entropy, dtype=torch.float64)
    if settings.discount > 0:
        future = future_sums(
            entropy,
            mask,
            (join(parts, "sample_index") - samples.start, join(parts, "token_ids") % longest),
            shape=(len(samples), longest),
            discount=settings.discount,
            cp_group=groups.cp,
        )
        future = future - masked_mean(future, mask, group=groups.dp_cp)
    softened = soft_advantages(
        join(parts, "advantages"), join(parts, "old_log_probs"), entropy, future, mask, coef=settings.coef
    )
    return [
        replace(part, advantages=own, policy_advantages=own, soft_part=own - part.advantages)
        for part, own in zip(parts, split_like(softened, parts), strict=True)
    ]
