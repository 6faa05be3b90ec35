"""Metrics against loops in plain Python, on one rank; tests/distributed/test_monitor_metrics.py splits the tokens."""

from __future__ import annotations

from math import exp

import pytest
import torch

from megacov.monitor.metrics import (
    entropy_before_filter,
    entropy_means,
    masked_means,
    mismatch_metrics,
    policy_means,
    reward_metrics,
    rollout_metrics,
)
from megacov.monitor.tags import TAGS
from megacov.types import Completion, Prompt, Sample

NAN = float("nan")


def sample(log_probs: tuple[float, ...], finish_reason: str) -> Sample:
    completion = Completion(tuple(range(len(log_probs))), log_probs, "", finish_reason, ())
    return Sample(Prompt(0, "", (1,), ""), completion, group=0, reward=0.0)


def test_each_mean_is_over_tokens_of_its_own():
    values = torch.tensor([1.0, 2.0, NAN, 4.0])
    valid = torch.tensor([True, True, False, True])
    terms = {
        "all": (values, valid),
        "last": (values, torch.tensor([False, False, False, True])),
        "share": (values > 1.5, valid),
        "nothing": (values, torch.zeros(4, dtype=torch.bool)),
    }
    means = masked_means(terms, group=None)
    assert list(means) == ["all", "last", "share", "nothing"]
    assert [means[name].item() for name in ("all", "last", "share")] == pytest.approx([7 / 3, 4.0, 2 / 3])
    assert means["nothing"].isnan()
    assert means["all"].dtype == torch.float64


def test_entropy_counts_tokens_alike_or_sequences_alike():
    # Sample 2 has tokens 1, 2, 3; sample 0 has token 5; sample 3 has only a masked token; sample 1 is on another rank.
    entropy = torch.tensor([1.0, 2.0, 3.0, 5.0, NAN])
    got = entropy_means(
        {"": entropy, "_t1": 2 * entropy},
        torch.tensor([2, 2, 2, 0, 3]),
        torch.tensor([True, True, True, True, False]),
        num_samples=4,
        group=None,
    )
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {
            "entropy/token_mean": 11 / 4,
            "entropy/sequence_mean": (2 + 5) / 2,
            "entropy/token_mean_t1": 22 / 4,
            "entropy/sequence_mean_t1": 7.0,
        }
    )


def test_entropy_has_the_same_bits_in_every_order_of_tokens():
    generator = torch.Generator().manual_seed(0)
    # Most tokens of a chain of thought are all but certain, and float64 rounds sums of small and large float32.
    entropy, samples = 3 * torch.rand(3000, generator=generator) ** 20, torch.arange(3000) // 1000
    order = torch.randperm(3000, generator=generator)
    mask = torch.ones(3000, dtype=torch.bool)
    first = entropy_means({"": entropy}, samples, mask, num_samples=3, group=None)
    other = entropy_means({"": entropy[order]}, samples[order], mask, num_samples=3, group=None)
    assert first == other
    assert first["entropy/token_mean"].item() == pytest.approx(entropy.double().mean().item(), rel=1e-14)


def test_mismatch():
    old = torch.tensor([-1.0, -2.0, -3.0, NAN])
    rollout = torch.tensor([-1.5, -1.0, -3.0, 0.0])
    got = mismatch_metrics(old, rollout, torch.tensor([True, True, True, False]), group=None)
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {
            "rollout/mismatch_k1": (-0.5 + 1.0) / 3,
            "rollout/mismatch_k1_abs": 1.5 / 3,
            "rollout/mismatch_k3": ((exp(0.5) - 1 - 0.5) + (exp(-1) - 1 + 1)) / 3,
            "rollout/mismatch_max": 1.0,
        }
    )


def test_mismatch_estimates_the_divergence_of_rollout_from_trainer():
    """Each token occurs as often as the rollout samples it, so the means are exact."""
    rollout_probs = torch.tensor([0.5, 0.25, 0.25])
    old_probs = torch.tensor([0.2, 0.2, 0.6])
    tokens = torch.tensor([0, 0, 1, 2])
    mask = torch.ones(4, dtype=torch.bool)
    got = mismatch_metrics(old_probs.log()[tokens], rollout_probs.log()[tokens], mask, group=None)
    exact = (rollout_probs * (rollout_probs / old_probs).log()).sum().item()
    assert got["rollout/mismatch_k1"].item() == pytest.approx(exact)
    assert got["rollout/mismatch_k3"].item() == pytest.approx(exact)


def test_policy_means_divide_sums_by_the_tokens_of_the_step():
    sums = {"ratio": torch.tensor(30.0).double(), "k1": torch.tensor(-3.0).double()}
    got = policy_means(sums, num_tokens=30, group=None)
    assert {name: value.item() for name, value in got.items()} == {"policy/k1": -0.1, "policy/ratio": 1.0}


def test_rewards():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5, 1.0])
    group_ids = torch.tensor([0, 1, 1, 0, 2, 2, 3, 3])
    assert reward_metrics(rewards, group_ids) == pytest.approx(
        {
            "reward/mean": 4.5 / 8,
            "reward/std": (4.25 / 8 - (4.5 / 8) ** 2) ** 0.5,
            "reward/min": 0.0,
            "reward/max": 1.0,
            "reward/all_right_groups": 1 / 4,
            "reward/all_wrong_groups": 1 / 4,
            "reward/equal_groups": 0.0,
        }
    )
    shifted = reward_metrics(2 * rewards - 1, group_ids, best_reward=1.0, worst_reward=-1.0)
    assert shifted["reward/all_right_groups"] == shifted["reward/all_wrong_groups"] == 1 / 4


def test_graded_rewards_are_equal_only_to_the_bit():
    rewards = torch.tensor([0.3, 0.3, 0.3, 0.1 + 0.2, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    shares = reward_metrics(rewards, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert [shares[f"reward/{kind}_groups"] for kind in ("equal", "all_right", "all_wrong")] == [1 / 4] * 3


def test_rollouts():
    samples = [sample((-1.0, -2.0), "stop"), sample((-3.0,) * 6, "length"), sample((-0.5,), "abort")]
    assert rollout_metrics(samples) == {
        "rollout/length_mean": 3.0,
        "rollout/length_max": 6,
        "rollout/truncated_fraction": pytest.approx(1 / 3),
    }
    assert entropy_before_filter(samples) == {"entropy/token_mean_before_filter": pytest.approx(21.5 / 9)}


def test_every_metric_is_declared():
    ones, mask = torch.ones(2), torch.ones(2, dtype=torch.bool)
    ids = torch.zeros(2, dtype=torch.int64)
    metrics = {
        **entropy_means({"": ones, "_t1": ones}, ids, mask, num_samples=1, group=None),
        **mismatch_metrics(ones, ones, mask, group=None),
        **policy_means({"k1": ones.sum()}, num_tokens=2, group=None),
        **reward_metrics(ones, ids),
        **rollout_metrics([sample((-1.0,), "stop")]),
        **entropy_before_filter([sample((-1.0,), "stop")]),
    }
    assert metrics.keys() <= TAGS.keys()
