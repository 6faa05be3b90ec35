"""Token mean and sequence mean over all micro-batches and ranks of an optimizer step.

Shapes: t tokens of this rank, n samples of the rollout batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.ops.class_sums import class_sums

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def token_and_sequence_mean(
    values: Tensor, mask: Tensor, sample_index: Tensor, *, num_samples: int, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Mean in which every token counts alike, and mean of the means of the sequences. Ranks may share a sequence.

    Args:
        values: [t] float; read only. Values outside the mask are ignored, NaN included.
        mask: [t] bool.
        sample_index: [t] int64 in [0, n), the sample of each token.
        num_samples: n, the same on all ranks. Samples without a masked token are left out.
        group: ranks that hold the other tokens.

    Returns:
        token mean: [] float64, detached, equal on all ranks and for every split of the tokens; NaN if no token is
            masked.
        sequence mean: [] float64, likewise.

    Collectives: group: SUM [4, n] float64.
    Gradient: none.
    """
    terms = [(values, mask), (torch.ones_like(values), mask)]
    ((sums, counts),) = class_sums([(sample_index, num_samples)], terms, group=group)
    per_sequence = torch.where(counts > 0, sums / counts, 0.0)
    return sums.sum() / counts.sum(), per_sequence.sum() / (counts > 0).sum()
