"""What every estimator needs: sums over the samples of a prompt, and rewards that can be used."""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import RewardError


class Groups:
    """The samples of a rollout batch by their prompt."""

    def __init__(self, group_ids: Tensor) -> None:
        """Number the groups.

        Args:
            group_ids: [n] int64, equal for samples of one prompt, in any order.
        """
        _, self._group, self._sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)

    @property
    def sizes(self) -> Tensor:
        """[n] int64: samples in the group of each sample."""
        return self._sizes[self._group]

    def sums(self, values: Tensor) -> Tensor:
        """[n] float: for each sample, the sum of `values` ([n] float; read only) over its group."""
        return values.new_zeros(len(self._sizes)).index_add(0, self._group, values)[self._group]


def check_finite(rewards: Tensor) -> None:
    """Raise RewardError if a reward ([n] float) is not finite; the error names the first such sample."""
    wrong = torch.nonzero(~torch.isfinite(rewards)).flatten().tolist()
    if wrong:
        raise RewardError(
            f"The reward of sample {wrong[0]} is {rewards[wrong[0]].item()}"
            f" ({len(wrong)} of {len(rewards)} rewards are not finite):"
            " make the verifier return a finite number for every completion."
        )
