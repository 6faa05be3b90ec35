"""Leave-one-out advantages: by hand, against the definition, and against the group-relative ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.advantages import group_relative, rloo
from megacov.config import load_config
from megacov.errors import RewardError
from megacov.trainer.algorithm import build_algorithm


def leave_one_out(rewards: list[float], group_ids: list[int]) -> list[float]:
    """The definition in plain Python arithmetic."""
    advantages = []
    for i, (reward, group) in enumerate(zip(rewards, group_ids, strict=True)):
        others = [r for j, (r, g) in enumerate(zip(rewards, group_ids, strict=True)) if g == group and j != i]
        advantages.append(reward - sum(others) / len(others) if others else 0.0)
    return advantages


def test_hand_computed():
    rewards = torch.tensor([1.0, 0.0, 5.0, 0.5, 1.0, 2.0, -2.0])
    group_ids = torch.tensor([7, 7, 2, 7, 7, 3, 3])
    # Group 7 has 1, 0, 0.5, 1: 1 - 1.5/3, 0 - 2.5/3, 0.5 - 2/3, 1 - 1.5/3. Group 3 has 2 and -2; group 2 is alone.
    expected = torch.tensor([0.5, -5 / 6, 0.0, -1 / 6, 0.5, 4.0, -4.0])
    torch.testing.assert_close(rloo(rewards, group_ids), expected)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 3.0]), st.integers(0, 4)), min_size=1, max_size=24)
)
def test_equals_the_definition_and_sums_to_zero_in_each_group(samples):
    rewards, group_ids = [reward for reward, _ in samples], [group for _, group in samples]
    got = rloo(torch.tensor(rewards, dtype=torch.float64), torch.tensor(group_ids))
    expected = torch.tensor(leave_one_out(rewards, group_ids), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for group in set(group_ids):
        assert got[torch.tensor(group_ids) == group].sum().abs() < 1e-12


def test_in_groups_of_one_size_it_is_a_multiple_of_the_reward_minus_the_mean():
    rewards, group_ids = torch.rand(40, dtype=torch.float64), torch.arange(40) % 8
    expected = 5 / 4 * group_relative(rewards, group_ids, normalize_std=False)
    torch.testing.assert_close(rloo(rewards, group_ids), expected, rtol=1e-12, atol=1e-12)


def test_the_baseline_does_not_depend_on_the_sample_itself():
    """This is what makes the estimator unbiased, and the mean of the group is no such baseline."""
    rewards, group_ids = torch.tensor([0.0, 1.0, 1.0, 0.0]).double(), torch.zeros(4, dtype=torch.int64)
    raised = rewards.clone()
    raised[0] += 8.0
    assert (rloo(raised, group_ids) - rloo(rewards, group_ids))[0] == 8.0
    change = group_relative(raised, group_ids, normalize_std=False) - group_relative(
        rewards, group_ids, normalize_std=False
    )
    assert change[0] == 6.0


def test_groups_of_one_and_of_equal_rewards_are_exactly_zero():
    rewards = torch.tensor([0.1] * 3 + [0.7] + [1 / 3] * 7)
    assert (rloo(rewards, torch.tensor([0] * 3 + [1] + [2] * 7)) == 0).all()


def test_order_of_samples_does_not_matter_and_rewards_are_left_alone():
    rewards, group_ids = torch.rand(32, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5
    before, order = rewards.clone(), torch.randperm(32, generator=torch.Generator().manual_seed(1))
    got = rloo(rewards, group_ids)
    torch.testing.assert_close(rloo(rewards[order], group_ids[order]), got[order])
    assert torch.equal(rewards, before)
    assert got.dtype == rewards.dtype
    assert rloo(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_not_finite_names_its_sample(wrong):
    with pytest.raises(RewardError, match=rf"reward of sample 1 is {wrong} \(1 of 3"):
        rloo(torch.tensor([0.0, wrong, 1.0]), torch.zeros(3, dtype=torch.int64))


def test_a_run_computes_the_advantages_that_its_settings_name():
    rewards, group_ids = torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.int64)
    found = {
        name: build_algorithm(load_config("yaml_configs/runs/tiny_grpo.yaml", [f"algorithm.advantages={name}"]))
        for name in ("{name: rloo}", "{normalize_std: false}", "{}")
    }
    got = [algorithm.advantages(rewards, group_ids) for algorithm in found.values()]
    torch.testing.assert_close(got[0], torch.tensor([1.0, -0.5, -0.5]))
    torch.testing.assert_close(got[1], torch.tensor([2 / 3, -1 / 3, -1 / 3]))
    torch.testing.assert_close(got[2], got[1] * 3**0.5, rtol=1e-5, atol=0)
