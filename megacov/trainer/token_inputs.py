"""What a loss needs to know about each response token, micro-batch by micro-batch, on the last pipeline stage.

Shape legend: n samples of the rollout batch, t response tokens of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacov.losses.aggregation import token_weights
from megacov.megatron.forward_step import TokenStatistics
from megacov.trainer.algorithm import Algorithm
from megacov.types import MicroBatch, RolloutBatch


@dataclass(frozen=True)
class TokenInputs:
    """Detached tensors of the response tokens of one micro-batch, all [t].

    old_log_probs, entropy, entropy_t1: of the policy before the first update of the rollout batch.
    rollout_log_probs: the server's.
    advantages: of each token's sample.
    token_weights: aggregation mode and denominator of the token's optimizer step.
    token_ids, loss_mask: of the micro-batch.
    sample_index: of each token, in the rollout batch.
    ref_log_probs: of the reference policy, or None.
    """

    old_log_probs: Tensor
    entropy: Tensor
    entropy_t1: Tensor
    rollout_log_probs: Tensor
    advantages: Tensor
    token_weights: Tensor
    token_ids: Tensor
    loss_mask: Tensor
    sample_index: Tensor
    ref_log_probs: Tensor | None


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
    samples: range,
    algorithm: Algorithm,
) -> list[TokenInputs]:
    """Join what the rollout knows of each token with what the forward pass found, for one optimizer step.

    Every rank holds the whole rollout batch, so the denominators need no communication.

    Args:
        batch: the rollout batch.
        micro_batches: of this rank, in this optimizer step.
        statistics: of the same micro-batches.
        reference: reference log-probs of the same micro-batches, or None.
        advantages: [n] float32.
        samples: of the rollout batch that this optimizer step takes, over all ranks.
        algorithm: aggregation mode and constant.

    Returns:
        One record a micro-batch.
    """
    tokens_per_sequence = batch.loss_mask.sum(dim=1)
    of_step = tokens_per_sequence[samples.start : samples.stop]
    result = []
    for i, (micro_batch, found) in enumerate(zip(micro_batches, statistics, strict=True)):
        assert found.entropy_t1 is not None, "the pass that finds the old log-probs takes both entropies"
        device = found.log_probs.device
        sample_index = micro_batch.sample_ids
        weights = token_weights(
            micro_batch.loss_mask,
            sample_index,
            mode=algorithm.aggregation,
            num_tokens=max(1, int(of_step.sum())),
            num_sequences=max(1, int((of_step > 0).sum())),
            tokens_per_sequence=tokens_per_sequence,
            constant_norm=algorithm.constant_norm,
        )
        positions = micro_batch.token_ids % batch.max_response_length
        result.append(
            TokenInputs(
                old_log_probs=found.log_probs,
                entropy=found.entropy,
                entropy_t1=found.entropy_t1,
                rollout_log_probs=batch.rollout_log_probs[sample_index, positions].to(device),
                advantages=advantages[sample_index].to(device),
                token_weights=weights.to(device),
                token_ids=micro_batch.token_ids.to(device),
                loss_mask=micro_batch.loss_mask.to(device),
                sample_index=sample_index.to(device),
                ref_log_probs=None if reference is None else reference[i],
            )
        )
    return result
