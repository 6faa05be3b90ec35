"""Leave-one-out advantages (RLOO): compares a sample with the mean of the other samples of its prompt.

n: samples of a rollout batch.
"""

from __future__ import annotations

from torch import Tensor

from megacov.advantages.groups import Groups, check_finite


def rloo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Reward minus the mean reward of the other samples of its group.

    A = r - (sum of the group's other rewards) / (k - 1), k samples in the group
      = k / (k - 1) (r - mean)
    The baseline of a sample does not depend on that sample, so the policy gradient is unbiased. In groups of one size
    it is a constant times group_relative without normalize_std, which Adam hardly sees.
    In a group of one, which has no other sample, and of equal rewards, all advantages are exactly 0.

    See "Back to Basics: Revisiting REINFORCE Style Optimization" (arXiv 2402.14740).

    Args:
        rewards: [n] float32; read only.
        group_ids: [n] int64, equal for samples of one prompt, in any order.

    Returns:
        [n] float32, computed in float64.

    Gradient: none.

    Raises:
        RewardError: a reward is not finite; the error names the sample.
    """
    check_finite(rewards)
    groups = Groups(group_ids)
    # In float64 a sum of equal float32 rewards is exact, and so is what is left of it without one of them.
    values = rewards.double()
    baseline = (groups.sums(values) - values) / (groups.sizes - 1).clamp(min=1)
    return (values - baseline).where(groups.sizes > 1, 0.0).to(rewards.dtype)
