"""The samples of an optimizer step cut off behind one of their response tokens each, and dealt anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megacov.data.packing import MicroBatchSettings, micro_batches_of
from megacov.types import MicroBatch, RolloutBatch


@dataclass(frozen=True)
class Prefixes:
    """Cuts the samples of an optimizer step off behind the last of some tokens.

    batch: the rollout batch, equal on all ranks.
    settings: size and layout of this rank's micro-batches.
    samples: rows of the rollout batch that the optimizer step trains on.
    """

    batch: RolloutBatch
    settings: MicroBatchSettings
    samples: range

    def share(self, token_ids: Tensor) -> float:
        """Positions of all prefixes over those of the optimizer step, neither with padding.

        Args:
            token_ids: [m] int64, response tokens of the optimizer step.

        Returns:
            A number in [0, 1].
        """
        lengths, rows = self._lengths(token_ids), slice(self.samples.start, self.samples.stop)
        prefixes = torch.where(lengths > 0, replace(self.batch, response_lengths=lengths).num_positions, 0)
        return float(prefixes[rows].sum()) / float(self.batch.num_positions[rows].sum())

    def micro_batches(self, token_ids: Tensor) -> list[MicroBatch]:
        """This rank's part of the prefixes, balanced over data-parallel ranks as whole samples are.

        Args:
            token_ids: [m] int64, response tokens of the optimizer step, the same on all ranks.

        Returns:
            One or more micro-batches; one that only makes their number right holds nothing but padding.
        """
        lengths = self._lengths(token_ids)
        samples = [i for i in self.samples if lengths[i] > 0]
        return micro_batches_of(replace(self.batch, response_lengths=lengths), self.settings, samples)

    def _lengths(self, token_ids: Tensor) -> Tensor:
        """[n] int64, response tokens of each prefix; 0 where a sample has none of the tokens."""
        stride = self.batch.max_response_length
        lengths = torch.zeros_like(self.batch.response_lengths)
        return lengths.scatter_reduce(0, token_ids // stride, token_ids % stride + 1, "amax")
