"""Group-relative advantages against a loop over groups, and groups whose advantages are all 0."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.advantages import group_relative
from megacov.errors import RewardError


def loop(rewards: list[float], group_ids: list[int], *, normalize_std: bool) -> list[float]:
    """The definition in plain Python arithmetic."""
    advantages = []
    for reward, group in zip(rewards, group_ids, strict=True):
        peers = [r for r, g in zip(rewards, group_ids, strict=True) if g == group]
        if max(peers) == min(peers):
            advantages.append(0.0)
            continue
        mean = sum(peers) / len(peers)
        std = (sum((r - mean) ** 2 for r in peers) / (len(peers) - 1)) ** 0.5
        advantages.append((reward - mean) / (std + 1e-6) if normalize_std else reward - mean)
    return advantages


def test_hand_computed():
    rewards = torch.tensor([1.0, 0.0, 5.0, 0.0, 1.0, 0.0])
    group_ids = torch.tensor([7, 7, 2, 7, 7, 7])
    plain = group_relative(rewards, group_ids, normalize_std=False)
    torch.testing.assert_close(plain, torch.tensor([0.6, -0.4, 0.0, -0.4, 0.6, -0.4]))
    std = (1.2 / 4) ** 0.5  # 2 * 0.36 + 3 * 0.16 = 1.2, over n - 1 = 4
    torch.testing.assert_close(group_relative(rewards, group_ids), plain / (std + 1e-6))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 3.0]), st.integers(0, 4)), min_size=1, max_size=24),
    st.booleans(),
)
def test_equals_a_loop_over_groups(samples, normalize_std):
    rewards, group_ids = [reward for reward, _ in samples], [group for _, group in samples]
    values = torch.tensor(rewards, dtype=torch.float64)
    got = group_relative(values, torch.tensor(group_ids), normalize_std=normalize_std)
    expected = torch.tensor(loop(rewards, group_ids, normalize_std=normalize_std), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_groups_of_one_and_of_equal_rewards_are_exactly_zero(normalize_std):
    rewards = torch.tensor([0.1] * 3 + [0.7] + [1 / 3] * 7)
    group_ids = torch.tensor([0] * 3 + [1] + [2] * 7)
    assert (group_relative(rewards, group_ids, normalize_std=normalize_std) == 0).all()


def test_order_of_samples_does_not_matter_and_rewards_are_left_alone():
    rewards, group_ids = torch.rand(32, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5
    before, order = rewards.clone(), torch.randperm(32, generator=torch.Generator().manual_seed(1))
    got = group_relative(rewards, group_ids)
    torch.testing.assert_close(group_relative(rewards[order], group_ids[order]), got[order])
    assert torch.equal(rewards, before)
    assert got.dtype == rewards.dtype


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_not_finite_names_its_sample(wrong):
    rewards = torch.tensor([0.0, 1.0, wrong, 0.0])
    with pytest.raises(RewardError, match=rf"reward of sample 2 is {wrong} \(1 of 4"):
        group_relative(rewards, torch.zeros(4, dtype=torch.int64))


def test_no_samples_is_no_advantages():
    assert group_relative(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)
