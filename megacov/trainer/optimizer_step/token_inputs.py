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

    old_log_probs: those that ratios are to: the trainer's before the first update of the rollout batch, or a server's.
        None for tokens of the first update, until its forward, where that tells them.
    trainer_log_probs, entropy, entropy_t1: of the policy before the first update of the rollout batch. Where the old
        log-probs are the server's, of the policy that the token's own update begins with. None until its forward, where
        that tells them.
    rollout_log_probs: the server's.
    advantages: of each token's sample, or with entropy as a reward the token's own.
    token_ids, loss_mask: of the micro-batch.
    sample_index: of each token, in the rollout batch.
    ref_log_probs: of the reference policy, or None.
    kept_mask: bool, the loss tokens that entropy mask and rollout correction leave.
    importance: float32, weight of the rollout correction; 1 without one.
    policy_advantages: advantages times importance, for the policy loss.
    token_weights: aggregation mode and denominator of the token's optimizer step.
    filtered_old_log_probs: of the same policy as the trainer's, without improbable entries; None where no loss asks.
    soft_part: what entropy as a reward has added to the advantages; None where it is none.
    """

    old_log_probs: Tensor | None
    trainer_log_probs: Tensor | None
    entropy: Tensor | None
    entropy_t1: Tensor | None
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
    filtered_old_log_probs: Tensor | None = None
    soft_part: Tensor | None = None


def join(inputs: Sequence[TokenInputs], name: str) -> Tensor:
    """One field of several micro-batches, end to end.

    Args:
        inputs: of the micro-batches, in order.
        name: of the field.

    Returns:
        [sum of t].
    """
    return torch.cat([getattr(part, name) for part in inputs])


def join_if_known(inputs: Sequence[TokenInputs], name: str) -> Tensor | None:
    """One field of several micro-batches, end to end.

    Args:
        inputs: of the micro-batches, in order.
        name: of the field, which may be None.

    Returns:
        [sum of t], or None where a micro-batch lacks it.
    """
    return None if any(getattr(part, name) is None for part in inputs) else join(inputs, name)


def old_log_probs(inputs: Sequence[TokenInputs]) -> list[Tensor]:
    """The old log-probs of micro-batches that have them.

    Args:
        inputs: of the micro-batches.

    Returns:
        [t] a micro-batch.
    """
    known = [part.old_log_probs for part in inputs if part.old_log_probs is not None]
    assert len(known) == len(inputs)
    return known


def old_forwards(inputs: Sequence[TokenInputs]) -> tuple[list[Tensor], list[Tensor]]:
    """What is known of micro-batches under the old policy.

    Args:
        inputs: of micro-batches that have old log-probs.

    Returns:
        log-probs: [t] a micro-batch.
        entropies: [t] a micro-batch; nothing unless all are known.
    """
    known = [part.entropy for part in inputs if part.entropy is not None]
    return old_log_probs(inputs), known if len(known) == len(inputs) else []


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
    statistics: Sequence[TokenStatistics | None],
    reference: Sequence[Tensor] | None,
    *,
    advantages: Tensor,
    device: torch.device,
    rollout_is_old: bool,
) -> list[TokenInputs]:
    """Join the rollout's record of each token with the forward pass's; `weigh_tokens` then decides what each counts.

    Args:
        batch: the rollout batch.
        micro_batches: of this rank, in one optimizer step.
        statistics: of the same micro-batches; None where no pass was made.
        reference: reference log-probs of the same micro-batches, or None.
        advantages: [n] float32.
        device: where the tensors of the results go.
        rollout_is_old: whether the server's log-probs are the old ones.

    Returns:
        One record a micro-batch, in which every loss token takes part and weighs nothing yet.
    """
    result = []
    for i, (micro_batch, found) in enumerate(zip(micro_batches, statistics, strict=True)):
        sample_index = micro_batch.sample_ids
        positions = micro_batch.token_ids % batch.max_response_length
        loss_mask = micro_batch.loss_mask.to(device)
        token_advantages = advantages[sample_index].to(device)
        rollout = batch.rollout_log_probs[sample_index, positions].to(device)
        trainers = None if found is None else found.log_probs
        old = rollout if rollout_is_old else trainers
        result.append(
            TokenInputs(
                old_log_probs=old,
                trainer_log_probs=trainers,
                entropy=None if found is None else found.entropy,
                entropy_t1=None if found is None else found.entropy_t1,
                rollout_log_probs=rollout,
                advantages=token_advantages,
                token_ids=micro_batch.token_ids.to(device),
                loss_mask=loss_mask,
                sample_index=sample_index.to(device),
                ref_log_probs=None if reference is None else reference[i],
                kept_mask=loss_mask,
                importance=torch.ones_like(token_advantages),
                policy_advantages=token_advantages,
                token_weights=torch.zeros_like(token_advantages),
                filtered_old_log_probs=None if found is None else found.filtered_log_probs,
            )
        )
    return result
