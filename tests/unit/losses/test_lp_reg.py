"""Lp-Reg: hand-computed tokens, PPO without a selection, and the mean of its penalty's gradient."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import get_loss
from megacov.losses.loss import policy_loss
from megacov.types import LossBatch

HYPERPARAMETERS = [{"kl_coef": 0.3, "min_p": 0.1, "max_gap": 0.05, "clip_low": 0.1, "clip_high": 0.4}]
LAYOUT_HYPERPARAMETERS = {"kl_coef": 3.0, "min_p": 0.05}
LAYOUT_SELECTION = {"negative_ratio": 0.7, "positive_ratio": 0.0}

# advantage, ratio, filtered log-prob less the old one, selected -> loss, gradient; range 0.5 to 2, coefficient 3
CASES = [
    (-2.0, 0.8, 0.1, True, 1.6 + 3 * (exp(0.1) / 0.8 - 1 - 0.1 + log(0.8)), 1.6 + 3 * (1 - exp(0.1) / 0.8)),
    (-2.0, 0.8, 0.1, False, 1.6, 1.6),
    (-2.0, 1.2, 0.1, True, 2.4, 2.4),  # more likely than in the filtered old policy
    (-2.0, 0.8, -inf, True, 1.6, 1.6),  # noise
    (-2.0, 0.8, log(0.8) + 1e-6, True, 1.6, 1.6),  # as likely as there, but for rounding
    (-2.0, 0.8, log(0.8) + 1e-4, True, 1.6 + 3 * (exp(1e-4) - 1 - 1e-4), 1.6 + 3 * (1 - exp(1e-4))),
    (-2.0, 0.4, 0.1, False, 1.0, 0.0),  # beyond the range
    (-2.0, 0.4, 0.1, True, 0.8 + 3 * (exp(0.1) / 0.4 - 1 - 0.1 + log(0.4)), 0.8 + 3 * (1 - exp(0.1) / 0.4)),
    (2.0, 2.5, 0.1, True, -4.0, 0.0),
    (2.0, 1.0, 0.5, True, -2.0 + 3 * (exp(0.5) - 1.5), -2.0 + 3 * (1 - exp(0.5))),
]


@pytest.mark.parametrize(("advantage", "ratio", "gap", "selected", "loss", "gradient"), CASES)
def test_hand_computed(advantage, ratio, gap, selected, loss, gradient, one_token):
    batch = replace(
        one_token(advantage, ratio, selected=selected), filtered_old_log_probs=torch.tensor([gap], dtype=torch.float64)
    )
    output = get_loss("lp_reg")(batch, kl_coef=3.0, clip_low=0.5, clip_high=1.0)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert batch.log_probs.grad.item() == pytest.approx(gradient, abs=1e-12)
    is_pulled = selected and gap - log(ratio) > 1e-5
    assert output.metrics["lp_reg_fraction"] == is_pulled
    assert (output.metrics["lp_reg_penalty"] > 0) == is_pulled


def test_a_token_that_is_far_off_pulls_no_harder_than_one_at_the_bound(one_token):
    found = []
    for ratio in (exp(-2.6), exp(-6.4), exp(-30.0)):
        batch = replace(one_token(-1e-9, ratio, selected=True), filtered_old_log_probs=torch.zeros(1).double())
        get_loss("lp_reg")(batch).loss.backward()
        found.append(batch.log_probs.grad.item())
    assert found == pytest.approx([1 - exp(2.6)] * 3, rel=1e-6)


def test_without_a_selection_it_is_ppo(make_batch):
    batch = make_batch(80, selected=torch.zeros(80, dtype=torch.bool))
    expected = get_loss("ppo_clip")(batch, clip_low=1.0, clip_high=9.0)
    assert torch.equal(get_loss("lp_reg")(batch).loss, expected.loss)
    assert get_loss("lp_reg")(make_batch(80)).loss != expected.loss


def test_the_mean_gradient_of_the_penalty_is_that_of_the_kl_to_the_whole_policy():
    """Over all tokens, each as often as the policy draws it: the gradient of KL(q || policy) by the logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, generator=generator, dtype=torch.float64).requires_grad_()
    # q gives mass to entries of the policy that have all become less likely, so that each one is pulled.
    log_q = (logits.detach() + 1.0).where(torch.arange(12) < 5, -inf).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    assert bool((log_p < log_q)[:5].all())
    batch = replace(
        make_tokens(12),
        log_probs=log_p,
        old_log_probs=log_p.detach(),
        filtered_old_log_probs=log_q,
        token_weights=log_p.detach().exp(),
    )
    (found,) = torch.autograd.grad(get_loss("lp_reg")(batch).loss, logits, retain_graph=True)
    kept = torch.isfinite(log_q)
    (expected,) = torch.autograd.grad((log_q.exp() * (log_q - log_p))[kept].sum(), logits)
    # sum over kept v of p_v (1 - q_v / p_v) grad log p_v = -sum q_v grad log p_v + sum over kept p_v grad log p_v
    (mass,) = torch.autograd.grad(logits.log_softmax(-1).exp()[kept].sum(), logits)
    torch.testing.assert_close(found, expected + mass, rtol=1e-10, atol=1e-12)


def make_tokens(number: int) -> LossBatch:
    """Selected tokens of advantage 0, so that the penalty alone has a gradient."""
    zeros, everything = torch.zeros(number, dtype=torch.float64), torch.ones(number, dtype=torch.bool)
    return LossBatch(zeros, zeros, zeros, everything, zeros, selected=everything)


@pytest.mark.parametrize("wrong", [{"kl_coef": -1.0}, {"min_p": 0.0}, {"min_p": 1.5}, {"max_gap": 0.0}])
def test_settings_out_of_range_are_refused(wrong, make_batch):
    with pytest.raises(ConfigError, match="they must be >= 0, in"):
        get_loss("lp_reg")(make_batch(4), **wrong)


def test_a_loss_that_reads_filtered_log_probs_has_the_filter():
    with pytest.raises(ConfigError, match="no hyperparameter min_p"):
        policy_loss(needs_filtered_old=True)(lambda batch: None)
