"""The sequences of one forward pass, padded or packed, and the part of each that a rank holds.

Shape legend: n samples, k sequences of a micro-batch, b rows and s positions on this context-parallel rank, t response
tokens that this rank predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import lcm

import torch

from megacov.parallel.zigzag import packed_zigzag_positions
from megacov.types import MicroBatch, RolloutBatch


@dataclass(frozen=True)
class SequenceLayout:
    """How sequences are arranged in a forward pass, and which part of them this rank holds.

    packed: whether sequences follow one another in a single row; otherwise each has a row, padded to the longest.
    cp_rank, cp_size: rank in the context-parallel group, and size of the group.
    share_multiple: divisor of the number of positions that a rank holds in a row: the tensor-parallel size under
        sequence parallelism, which splits those positions again; else 1.
    """

    packed: bool = False
    cp_rank: int = 0
    cp_size: int = 1
    share_multiple: int = 1

    @property
    def sequence_multiple(self) -> int:
        """Every sequence is padded to a multiple of this, so that the zigzag can split it."""
        return 1 if self.cp_size == 1 else 2 * self.cp_size

    @property
    def row_multiple(self) -> int:
        """Every row is padded to a multiple of this."""
        return lcm(self.sequence_multiple, self.cp_size * self.share_multiple)

    def padded_lengths(self, lengths: Sequence[int]) -> list[int]:
        """Positions of each sequence, padding included.

        Args:
            lengths: positions of each of one or more sequences.

        Returns:
            Padded: the same length for all. Packed: a length for each; the last one includes the padding of the row.
        """
        if not self.packed:
            return [_round_up(max(lengths), self.row_multiple)] * len(lengths)
        padded = [_round_up(length, self.sequence_multiple) for length in lengths]
        rest = sum(padded[:-1])
        return [*padded[:-1], _round_up(rest + padded[-1], self.row_multiple) - rest]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def make_micro_batch(batch: RolloutBatch, sample_ids: Sequence[int], layout: SequenceLayout) -> MicroBatch:
    """Take samples from a rollout batch for one forward pass, and keep the part that this rank holds.

    Args:
        batch: samples of the whole rollout.
        sample_ids: indices of the samples, in order. An empty list gives one sequence of padding without response
            tokens, so that a rank without samples still takes part in every collective.
        layout: padded or packed, with this rank's place in the context-parallel group.

    Returns:
        The micro-batch, on the CPU.
    """
    ids = torch.tensor(list(sample_ids) or [0], dtype=torch.int64)
    prompts, responses = batch.prompt_lengths[ids], batch.response_lengths[ids]
    lengths = batch.num_positions[ids]
    if not sample_ids:
        responses, lengths = torch.zeros_like(responses), torch.zeros_like(lengths)
    padded = layout.padded_lengths(lengths.clamp(min=1).tolist())
    boundaries = list(accumulate(padded, initial=0))
    # For every position of the whole row or rows: its sequence, and its place in that sequence.
    sequence = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor(padded))
    position = torch.arange(boundaries[-1]) - torch.tensor(boundaries)[sequence]
    held = packed_zigzag_positions(boundaries, cp_rank=layout.cp_rank, cp_size=layout.cp_size)
    sequence, position = sequence[held], position[held]

    is_read = position < lengths[sequence]

    def token_at(place: torch.Tensor) -> torch.Tensor:
        values = batch.tokens[ids[sequence], place.clamp(max=batch.tokens.shape[1] - 1)]
        return torch.where(is_read, values, 0)

    response_position = position + 1 - prompts[sequence]
    predicts = ((response_position >= 0) & (response_position < responses[sequence])).nonzero().squeeze(1)
    of_sample, response_position = ids[sequence[predicts]], response_position[predicts]
    shape = (1, -1) if layout.packed else (len(ids), -1)
    return MicroBatch(
        tokens=token_at(position).view(shape),
        positions=position.view(shape),
        targets=token_at(position + 1).view(shape),
        predicting=predicts,
        sample_ids=of_sample,
        token_ids=of_sample * batch.max_response_length + response_position,
        loss_mask=batch.loss_mask[of_sample, response_position],
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32) if layout.packed else None,
        max_seqlen=max(padded),
        temperatures=None if batch.temperatures is None else batch.temperatures[ids[sequence]].view(shape),
    )
