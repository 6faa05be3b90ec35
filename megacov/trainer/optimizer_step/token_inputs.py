"""Everything that a loss needs to know about each response token, on the last pipeline stage.

Shape legend: n samples of the rollout batch, t response tokens of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacov.megatron.logits_reader import TokenStatistics
from megacov.types import MicroBatch, RolloutBatch


@dataclass(frozen=True)
class TokenInputs:
    """Detached tensors of the response tokens of one micro-batch, all [t].

    old_log_probs, entropy, entropy_t1: of the policy before the first update of the rollout batch.
    rollout_log_probs: the server's.
    advantages: of each token's sample.
    token_ids, loss_mask: of the micro-batch.
    sample_index: of each token, in the rollout batch.
    ref_log_probs: of the reference policy, or None.
    kept_mask: bool, the loss tokens that entropy mask and rollout correction leave.
    importance: float32, weight of the rollout correction; 1 without one.
    policy_advantages: advantages times importance, for the policy loss.
    token_weights: aggregation mode and denominator of the token's optimizer step.
    """

    old_log_probs: Tensor
    entropy: Tensor
    entropy_t1: Tensor
    rollout_log_probs: Tensor
    advantages: Tensor
    token_ids: Tensor
    loss_mask: Tensor
    sample_index: Tensor
    ref_log_probs: Tensor | None
    kept_mask: Tensor
    importance: Tensor
    policy_advantages: Tensor
    token_weights: Tensor


def join(inputs: Sequence[TokenInputs], name: str) -> Tensor:
    """One field of several micro-batches, end to end.

    Args:
        inputs: of the micro-batches, in order.
        name: of the field.

    Returns:
        [sum of t].
    """
    return torch.cat([getattr(part, name) for part in inputs])


def split_like(values: Tensor, inputs: Sequence[TokenInputs]) -> list[Tensor]:
    """Undo `join`.

    Args:
        values: [sum of t].
        inputs: the micro-batches it was joined over.

    Returns:
        [t] a micro-batch.
    """
    return list(values.split([len(part.loss_mask) for part in inputs]))


def make_token_inputs(
    batch: RolloutBatch,
    micro_batches: Sequence[MicroBatch],
    statistics: Sequence[TokenStatistics],
    reference: Sequence[Tensor] | None,
    *,
    advantages: Tensor,
) -> list[TokenInputs]:
    """Join the rollout's record of each token with the forward pass's; `weigh_tokens` then decides what each counts.

    Args:
        batch: the rollout batch.
        micro_batches: of this rank, in one optimizer step.
        statistics: of the same micro-batches.
        reference: reference log-probs of the same micro-batches, or None.
        advantages: [n] float32.

    Returns:
        One record a micro-batch, in which every loss token takes part and weighs nothing yet.
    """
    result = []
    for i, (micro_batch, found) in enumerate(zip(micro_batches, statistics, strict=True)):
        assert found.entropy_t1 is not None, "the pass that finds the old log-probs takes both entropies"
        device = found.log_probs.device
        sample_index = micro_batch.sample_ids
        positions = micro_batch.token_ids % batch.max_response_length
        loss_mask = micro_batch.loss_mask.to(device)
        token_advantages = advantages[sample_index].to(device)
        result.append(
            TokenInputs(
                old_log_probs=found.log_probs,
                entropy=found.entropy,
                entropy_t1=found.entropy_t1,
                rollout_log_probs=batch.rollout_log_probs[sample_index, positions].to(device),
                advantages=token_advantages,
                token_ids=micro_batch.token_ids.to(device),
                loss_mask=loss_mask,
                sample_index=sample_index.to(device),
                ref_log_probs=None if reference is None else reference[i],
                kept_mask=loss_mask,
                importance=torch.ones_like(token_advantages),
                policy_advantages=token_advantages,
                token_weights=torch.zeros_like(token_advantages),
            )
        )
    return result
