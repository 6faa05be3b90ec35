"""Assigns judged samples to optimizer steps, data-parallel ranks and forward passes.

Every rank holds the whole rollout batch and computes the same plan, so there is no communication.
Shape legend: n samples, s padded sequence, r padded response.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import torch

from megacov.data.micro_batch import SequenceLayout, make_micro_batch
from megacov.errors import DataError
from megacov.types import MicroBatch, RolloutBatch, Sample


def num_overlong(samples: Iterable[Sample]) -> int:
    """Number of responses that a length limit cut, after at least one token."""
    return sum(map(_is_overlong, samples))


def _is_overlong(sample: Sample) -> bool:
    return sample.completion.finish_reason == "length" and bool(sample.completion.token_ids)


def build_rollout_batch(
    samples: Sequence[Sample],
    *,
    max_response_length: int,
    mask_overlong: bool = False,
    penalties: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
) -> RolloutBatch:
    """Put judged samples into tensors. Every response token is a loss token; an empty completion has none.

    Args:
        samples: samples of one rollout, with those of a group next to each other.
        max_response_length: limit of a response and stride of token ids. [tokens]
        mask_overlong: whether responses that a length limit cut have no loss token, as in DAPO's overlong filtering
            (arXiv 2503.14476); their rewards stay.
        penalties: what each sample's reward is lowered by; None for nothing.
        temperatures: sampling temperature of each source of prompts; None if all have that of the run.

    Returns:
        The batch, on the CPU.

    Raises:
        DataError: no sample has a loss token, or a response exceeds the limit.
    """
    longest = max((len(sample.completion.token_ids) for sample in samples), default=0)
    if longest == 0:
        raise DataError("no completion of this rollout has a token: there is nothing to learn from.")
    if longest > max_response_length:
        raise DataError(
            f"a completion has {longest} tokens but rollout.max_response_length is {max_response_length}: "
            "the server ignored the limit."
        )
    carries_loss = torch.tensor([not (mask_overlong and _is_overlong(sample)) for sample in samples])
    if not any(carries and sample.completion.token_ids for carries, sample in zip(carries_loss, samples, strict=True)):
        raise DataError(
            f"rollout.mask_overlong leaves no token to learn from: the length limit cut all {num_overlong(samples)} "
            "responses of this rollout; raise rollout.max_response_length, or set rollout.mask_overlong to false."
        )
    verdicts = torch.tensor([sample.reward for sample in samples], dtype=torch.float32)
    prompt_lengths = torch.tensor([len(sample.prompt.token_ids) for sample in samples])
    response_lengths = torch.tensor([len(sample.completion.token_ids) for sample in samples])
    width = int((prompt_lengths + response_lengths).max())
    tokens = _rows([sample.prompt.token_ids + sample.completion.token_ids for sample in samples], width, torch.int64)
    rollout_log_probs = _rows([sample.completion.log_probs for sample in samples], longest, torch.float32)
    rewards = [each.reward - less for each, less in zip(samples, penalties or [0.0] * len(samples), strict=True)]
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=prompt_lengths,
        response_lengths=response_lengths,
        loss_mask=(torch.arange(longest) < response_lengths[:, None]) & carries_loss[:, None],
        rollout_log_probs=rollout_log_probs,
        group_ids=torch.tensor([sample.group for sample in samples]),
        rewards=torch.tensor(rewards, dtype=torch.float32),
        max_response_length=max_response_length,
        temperatures=_temperatures(samples, temperatures),
        verdicts=verdicts if any(penalties or ()) else None,
    )


def _rows(rows: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of several lengths as one tensor, filled up with zeros. A tensor for each row would take far longer."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.zeros(len(rows), width, dtype=dtype)
    values[torch.arange(width) < lengths[:, None]] = torch.tensor([*chain.from_iterable(rows)], dtype=dtype)
    return values


def _temperatures(samples: Sequence[Sample], of_sources: Sequence[float] | None) -> torch.Tensor | None:
    if of_sources is None:
        return None
    return torch.tensor([of_sources[sample.prompt.source] for sample in samples], dtype=torch.float64)


def balance(lengths: Sequence[int], *, num_parts: int) -> list[list[int]]:
    """Distribute sequences so that parts have similar token counts: longest first, each to the lightest part.

    Args:
        lengths: positions of each sequence.
        num_parts: number of parts.

    Returns:
        For each part its sequence indices, longest first. Parts are empty if there are fewer sequences than parts.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        lightest = min(range(num_parts), key=lambda part: (loads[part], part))
        parts[lightest].append(index)
        loads[lightest] += lengths[index]
    return parts


def update_ranges(num_samples: int, *, num_updates: int) -> list[range]:
    """Sample indices of each optimizer step: consecutive parts of the rollout batch of equal size, up to one sample."""
    bounds = [num_samples * i // num_updates for i in range(num_updates + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def cut(lengths: Sequence[int], *, micro_batch_tokens: int, layout: SequenceLayout) -> list[list[int]]:
    """Distribute sequences over forward passes with at most micro_batch_tokens positions, padding included.

    Padded: sequences of similar length share a pass, which keeps padding small. Packed: passes are equally full. A
    sequence longer than the limit gets a pass of its own.

    Args:
        lengths: positions of each sequence.
        micro_batch_tokens: largest number of positions in one forward pass, over all context-parallel ranks.
        layout: padded or packed.

    Returns:
        For each pass its sequence indices, one or more.
    """
    if layout.packed:
        sizes = [layout.padded_lengths([length])[0] for length in lengths]
        num_parts = max(1, -(-sum(sizes) // micro_batch_tokens))
        while True:
            parts = [part for part in balance(sizes, num_parts=num_parts) if part]
            if all(len(part) == 1 or sum(sizes[i] for i in part) <= micro_batch_tokens for part in parts):
                return parts
            num_parts += 1
    parts = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first sequence of a pass is its longest, and so sets the width.
        if parts and (len(parts[-1]) + 1) * layout.padded_lengths([lengths[parts[-1][0]]])[0] <= micro_batch_tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


@dataclass(frozen=True)
class MicroBatchSettings:
    """How this rank's micro-batches are cut.

    tokens: positions of one forward pass, at most; a longer sequence has a pass to itself.
    layout: padded or packed, and this rank's place in the context-parallel group.
    dp_rank, dp_size: this rank's place among the data-parallel ranks.
    count_multiple: divides the number of micro-batches of an optimizer step, as Megatron's interleaved schedule wants
        of the pipeline-parallel size.
    same_count: every data-parallel rank has as many micro-batches in an optimizer step as the one with most, since
        ranks that share experts go through every forward pass together.
    """

    tokens: int
    layout: SequenceLayout
    dp_rank: int = 0
    dp_size: int = 1
    count_multiple: int = 1
    same_count: bool = False


def plan_micro_batches(
    batch: RolloutBatch, settings: MicroBatchSettings, *, num_updates: int
) -> list[list[MicroBatch]]:
    """Plan the forward passes of one rank for each optimizer step.

    The old log-probs are computed on the same micro-batches, and so on the same shapes, as the training pass.

    Args:
        batch: the rollout batch, equal on all ranks.
        settings: size and layout of micro-batches.
        num_updates: optimizer steps per rollout batch.

    Returns:
        One or more micro-batches for each optimizer step; those added to reach the count hold only padding.
    """
    ranges = update_ranges(len(batch.rewards), num_updates=num_updates)
    return [micro_batches_of(batch, settings, samples) for samples in ranges]


def micro_batches_of(batch: RolloutBatch, settings: MicroBatchSettings, samples: Sequence[int]) -> list[MicroBatch]:
    """Distribute samples over data-parallel ranks, and cut the part of one of them into forward passes.

    Args:
        batch: the rollout batch, equal on all ranks.
        settings: size and layout of micro-batches.
        samples: rows of the batch, in order; the same on all ranks.

    Returns:
        One or more micro-batches; those added to reach the count hold only padding.
    """
    lengths = batch.num_positions.tolist()
    by_rank = balance([lengths[i] for i in samples], num_parts=settings.dp_size)
    chunks_of = {
        rank: cut(
            [lengths[samples[i]] for i in by_rank[rank]], micro_batch_tokens=settings.tokens, layout=settings.layout
        )
        for rank in (range(settings.dp_size) if settings.same_count else [settings.dp_rank])
        if by_rank[rank]
    }
    own_samples = [samples[i] for i in by_rank[settings.dp_rank]]
    chunks = [[own_samples[i] for i in part] for part in chunks_of.get(settings.dp_rank, [])]
    most = max(map(len, chunks_of.values()), default=0)
    num_chunks = max(1, -(-most // settings.count_multiple)) * settings.count_multiple
    chunks += [[] for _ in range(num_chunks - len(chunks))]
    return [make_micro_batch(batch, chunk, settings.layout) for chunk in chunks]
