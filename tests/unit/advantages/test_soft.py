"""Soft advantages: hand-computed, and their policy gradient is the exact one of reward plus entropy."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from megacov.advantages import soft_advantages
from megacov.ops import future_sums

DOUBLE = torch.float64


def test_hand_computed():
    known = {
        "advantages": [1.0, -1.0, 2.0],
        "log_probs": [-0.5, -3.0, float("nan")],
        "entropy": [0.7, 1.0, float("nan")],
        "future": [0.25, -0.25, 0.0],
    }
    mask = torch.tensor([True, True, False])
    found = soft_advantages(*(torch.tensor(values) for values in known.values()), mask, coef=2.0)
    torch.testing.assert_close(found, torch.tensor([1 + 2 * (0.5 - 0.7 + 0.25), -1 + 2 * (3 - 1 - 0.25), 2.0]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("discount", [1.0, 0.0])
@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_the_policy_gradient_is_that_of_reward_and_entropy(discount, baseline):
    """All 27 responses of three tokens, each as often as the policy draws it, and a reward for each."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(13, 3, generator=generator, dtype=DOUBLE).requires_grad_()  # of each state
    rewards, coef = torch.rand(27, generator=generator, dtype=DOUBLE), 0.7
    responses = torch.tensor(list(product(range(3), repeat=3)))
    # The empty state, those of one token, those of two.
    first, second, _ = responses.unbind(1)
    states = torch.stack([torch.zeros_like(first), 1 + first, 4 + 3 * first + second], 1)
    policy = logits.log_softmax(-1)
    log_probs, entropies = policy[states, responses], -(policy.exp() * policy).sum(-1)[states]
    chances = log_probs.sum(1).exp()

    # Without a future it is a bonus: the entropies of the states that are reached, whatever leads to them.
    reached = chances if discount == 1 else chances.detach()
    objective = (chances * rewards).sum() + coef * (reached[:, None] * entropies).sum()
    (expected,) = torch.autograd.grad(objective, logits, retain_graph=True)

    flat, everything = entropies.detach().flatten(), torch.ones(81, dtype=torch.bool)
    places = torch.arange(81) // 3, torch.arange(81) % 3
    future = future_sums(flat, everything, places, shape=(27, 3), discount=discount, cp_group=None) - baseline
    advantages = rewards.repeat_interleave(3)
    soft = soft_advantages(advantages, log_probs.detach().flatten(), flat, future, everything, coef=coef).view(27, 3)
    (found,) = torch.autograd.grad((chances.detach()[:, None] * soft * log_probs).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
