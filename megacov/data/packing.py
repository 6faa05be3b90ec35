"""From judged samples to micro-batches: which optimizer step, which data-parallel rank, which forward pass.

Every rank holds the whole rollout batch and computes the same plan, so nothing is communicated.
Shape legend: n samples, s padded sequence, r padded response, b sequences of a micro-batch, t response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from megacov.errors import DataError
from megacov.types import MicroBatch, RolloutBatch, Sample


def build_rollout_batch(samples: Sequence[Sample], *, max_response_length: int) -> RolloutBatch:
    """Lay judged samples into tensors. Every response token carries loss; an empty completion carries none.

    Args:
        samples: of one rollout, samples of a group next to each other.
        max_response_length: tokens; the stride of token ids.

    Returns:
        The batch, on the CPU.

    Raises:
        DataError: no sample carries a loss token, or a response is longer than it may be.
    """
    longest = max((len(sample.completion.token_ids) for sample in samples), default=0)
    if longest == 0:
        raise DataError("no completion of this rollout has a token: there is nothing to learn from.")
    if longest > max_response_length:
        raise DataError(
            f"a completion has {longest} tokens but rollout.max_response_length is {max_response_length}: "
            "the server ignored the limit."
        )
    prompt_lengths = torch.tensor([len(sample.prompt.token_ids) for sample in samples])
    response_lengths = torch.tensor([len(sample.completion.token_ids) for sample in samples])
    tokens = torch.zeros(len(samples), int((prompt_lengths + response_lengths).max()), dtype=torch.int64)
    rollout_log_probs = torch.zeros(len(samples), longest)
    for i, sample in enumerate(samples):
        ids = sample.prompt.token_ids + sample.completion.token_ids
        tokens[i, : len(ids)] = torch.tensor(ids)
        rollout_log_probs[i, : len(sample.completion.log_probs)] = torch.tensor(sample.completion.log_probs)
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=prompt_lengths,
        response_lengths=response_lengths,
        loss_mask=torch.arange(longest) < response_lengths[:, None],
        rollout_log_probs=rollout_log_probs,
        group_ids=torch.tensor([sample.group for sample in samples]),
        rewards=torch.tensor([sample.reward for sample in samples], dtype=torch.float32),
        max_response_length=max_response_length,
    )


def balance(lengths: Sequence[int], *, num_parts: int) -> list[list[int]]:
    """Spread sequences over parts so that their token counts are close: longest first, each to the lightest part.

    Args:
        lengths: tokens of each sequence.
        num_parts: data-parallel ranks.

    Returns:
        For each part the indices it holds, longest first. A part is empty where there are fewer sequences than parts.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        lightest = min(range(num_parts), key=lambda part: (loads[part], part))
        parts[lightest].append(index)
        loads[lightest] += lengths[index]
    return parts


def make_micro_batch(batch: RolloutBatch, sample_ids: Sequence[int]) -> MicroBatch:
    """Cut samples out of a rollout batch for one forward pass, padded only to the longest of them.

    Args:
        batch: the rollout batch.
        sample_ids: which samples, in this order. None at all gives one padding token and no response token, so that a
            rank without samples still takes part in every collective.

    Returns:
        The micro-batch, on the CPU.
    """
    ids = torch.tensor(list(sample_ids), dtype=torch.int64)
    prompts, responses = batch.prompt_lengths[ids], batch.response_lengths[ids]
    if not sample_ids:
        tokens = torch.zeros(1, 1, dtype=torch.int64)
    else:
        tokens = batch.tokens[ids, : int((prompts + responses).max())]
    rows = torch.repeat_interleave(torch.arange(len(ids)), responses)
    starts = torch.cumsum(responses, 0) - responses
    positions = torch.arange(len(rows)) - starts[rows]
    return MicroBatch(
        tokens=tokens,
        rows=rows,
        columns=prompts[rows] + positions - 1,
        sample_ids=ids,
        token_ids=ids[rows] * batch.max_response_length + positions,
        loss_mask=batch.loss_mask[ids[rows], positions],
    )


def update_ranges(num_samples: int, *, num_updates: int) -> list[range]:
    """Which samples each optimizer step takes: equal runs of the rollout batch, in order.

    Args:
        num_samples: of the rollout batch.
        num_updates: optimizer steps per rollout batch.

    Returns:
        One range of sample indices an optimizer step.
    """
    bounds = [num_samples * i // num_updates for i in range(num_updates + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def plan_micro_batches(
    batch: RolloutBatch, *, num_updates: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> list[list[MicroBatch]]:
    """The forward passes of one data-parallel rank, optimizer step by optimizer step.

    Sequences of similar length share a micro-batch, so that padding stays small. The old log-probs are computed on
    these same micro-batches, hence on the same shapes as the training pass.

    Args:
        batch: the rollout batch, equal on all ranks.
        num_updates: optimizer steps per rollout batch.
        micro_batch_size: sequences a forward pass, at most.
        dp_rank: of this rank.
        dp_size: data-parallel ranks.

    Returns:
        For each optimizer step at least one micro-batch; a rank without samples holds one that is all padding.
    """
    lengths = (batch.prompt_lengths + batch.response_lengths).tolist()
    plan = []
    for samples in update_ranges(len(lengths), num_updates=num_updates):
        mine = [samples[i] for i in balance([lengths[i] for i in samples], num_parts=dp_size)[dp_rank]]
        chunks = [mine[i : i + micro_batch_size] for i in range(0, len(mine), micro_batch_size)]
        plan.append([make_micro_batch(batch, chunk) for chunk in chunks or [[]]])
    return plan
