"""Group-relative advantages (GRPO): compares a sample with the other samples of its prompt.

n: samples of a rollout batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacov.errors import RewardError

_STD_FLOOR = 1e-6


def group_relative(rewards: Tensor, group_ids: Tensor, *, normalize_std: bool = True) -> Tensor:
    """Reward minus the mean of its group, over the standard deviation of its group.

    A = (r - mean) / (std + 1e-6), std over n - 1      normalize_std (GRPO)
    A = r - mean                                       otherwise ("Dr. GRPO")
    In a group of one, or of equal rewards, all advantages are exactly 0.

    See "DeepSeekMath" (arXiv 2402.03300) and "Understanding R1-Zero-Like Training" (arXiv 2503.20783).

    Args:
        rewards: [n] float32; read only.
        group_ids: [n] int64, equal for samples of one prompt, in any order.
        normalize_std: whether to divide by the standard deviation.

    Returns:
        [n] float32, computed in float64.

    Gradient: none.

    Raises:
        RewardError: a reward is not finite; the error names the sample.
    """
    _check_finite(rewards)
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    # In float64 a sum of equal float32 rewards is exact, so their mean is the reward itself.
    values = rewards.double()
    centred = values - (_group_sum(values, group, len(sizes)) / sizes)[group]
    variance = _group_sum(centred.square(), group, len(sizes)) / (sizes - 1).clamp(min=1)
    scale = variance.sqrt()[group] + _STD_FLOOR if normalize_std else 1.0
    return (centred / scale).to(rewards.dtype)


def _group_sum(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    return values.new_zeros(num_groups).index_add(0, group, values)


def _check_finite(rewards: Tensor) -> None:
    wrong = torch.nonzero(~torch.isfinite(rewards)).flatten().tolist()
    if wrong:
        raise RewardError(
            f"The reward of sample {wrong[0]} is {rewards[wrong[0]].item()}"
            f" ({len(wrong)} of {len(rewards)} rewards are not finite):"
            " make the verifier return a finite number for every completion."
        )
