"""Group-relative advantages (GRPO): compares a sample with the other samples of its prompt.

n: samples of a rollout batch.
"""

from __future__ import annotations

from torch import Tensor

from megacov.advantages.groups import Groups, check_finite

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
    check_finite(rewards)
    groups = Groups(group_ids)
    # In float64 a sum of equal float32 rewards is exact, so their mean is the reward itself.
    values = rewards.double()
    centred = values - groups.sums(values) / groups.sizes
    variance = groups.sums(centred.square()) / (groups.sizes - 1).clamp(min=1)
    scale = variance.sqrt() + _STD_FLOOR if normalize_std else 1.0
    return (centred / scale).to(rewards.dtype)
