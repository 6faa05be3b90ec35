"""Entropy bonus and reference KL: values, gradients, and what a weight of 0 means."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses import add_terms, get_loss
from megacov.types import LossBatch, LossOutput


def test_hand_computed():
    batch = LossBatch(
        log_probs=torch.tensor([-1.0, -2.0, float("nan")]).double(),
        old_log_probs=torch.zeros(3).double(),
        advantages=torch.zeros(3).double(),
        kept_mask=torch.tensor([True, True, False]),
        token_weights=torch.tensor([0.5, 0.25, 9.0]).double(),
        entropy=torch.tensor([2.0, 4.0, float("nan")]).double(),
        ref_log_probs=torch.tensor([-1.5, -1.0, float("inf")]).double(),
    )
    output = LossOutput(torch.tensor(10.0).double(), {"k1": torch.tensor(7.0)})
    d = torch.tensor([0.5, -1.0]).double()
    for estimator, kl in {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}.items():
        got = add_terms(output, batch, entropy_coef=0.1, ref_kl_coef=2.0, ref_kl_estimator=estimator)
        expected = 10 - 0.1 * (0.5 * 2 + 0.25 * 4) + 2 * (0.5 * kl[0] + 0.25 * kl[1])
        torch.testing.assert_close(got.loss, expected)
        torch.testing.assert_close(got.metrics["ref_kl"], kl.sum())
        assert got.metrics["k1"] == 7
    assert output.loss == 10
    assert set(output.metrics) == {"k1"}


def test_terms_of_weight_zero_change_nothing_but_the_reference_kl_is_still_watched(make_batch):
    batch = make_batch(30)
    output = get_loss("ppo_clip")(batch)
    for given in (batch, replace(batch, entropy=None, ref_log_probs=None)):
        got = add_terms(output, given)
        assert torch.equal(got.loss, output.loss)
        assert ("ref_kl" in got.metrics) == (given.ref_log_probs is not None)


def test_the_bonus_raises_entropy_and_the_reference_kl_pulls_towards_the_reference(make_batch):
    batch = make_batch(30, kept_mask=torch.ones(30, dtype=torch.bool))
    batch = replace(batch, entropy=batch.entropy.requires_grad_(), log_probs=batch.log_probs.requires_grad_())
    zero = LossOutput(torch.zeros(()).double(), {})
    add_terms(zero, batch, entropy_coef=0.5, ref_kl_coef=1.0, ref_kl_estimator="k2").loss.backward()
    torch.testing.assert_close(batch.entropy.grad, -0.5 * batch.token_weights)
    expected = batch.token_weights * (batch.log_probs - batch.ref_log_probs)
    torch.testing.assert_close(batch.log_probs.grad, expected.detach())


def exact_gradient(estimator: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean gradient of the reference term over tokens of the policy, and those of KL(new || ref), KL(ref || new)."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    ref = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    log_probs = logits.log_softmax(0)
    probs = log_probs.exp()
    batch = LossBatch(
        log_probs=log_probs,
        old_log_probs=log_probs.detach(),
        advantages=torch.zeros(6),
        kept_mask=torch.ones(6, dtype=torch.bool),
        token_weights=probs.detach(),
        ref_log_probs=ref,
    )
    loss = add_terms(LossOutput(torch.zeros(()), {}), batch, ref_kl_coef=1.0, ref_kl_estimator=estimator).loss
    reverse, forward = (probs * (log_probs - ref)).sum(), (ref.exp() * (ref - log_probs)).sum()
    return tuple(torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, reverse, forward))


def test_mean_gradients_are_as_documented():
    torch.testing.assert_close(exact_gradient("k1")[0], torch.zeros(6).double(), rtol=0, atol=1e-12)
    got, new_ref, _ = exact_gradient("k2")
    torch.testing.assert_close(got, new_ref, rtol=1e-10, atol=1e-12)
    got, _, ref_new = exact_gradient("k3")
    torch.testing.assert_close(got, ref_new, rtol=1e-10, atol=1e-12)


def test_an_unknown_estimator_is_refused(make_batch):
    with pytest.raises(ConfigError, match="ref_kl_estimator is 'abs'"):
        add_terms(get_loss("ppo_clip")(make_batch(4)), make_batch(4), ref_kl_estimator="abs")


def pulled(gaps: list[float], **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference KL of tokens whose log-probs lie so far below the reference's, and its gradient to the log-probs."""
    ref = torch.tensor([0.0] * len(gaps), dtype=torch.float64)
    log_probs = (ref - torch.tensor(gaps, dtype=torch.float64)).requires_grad_()
    batch = LossBatch(
        log_probs=log_probs,
        old_log_probs=log_probs.detach(),
        advantages=torch.zeros(len(gaps)).double(),
        kept_mask=torch.ones(len(gaps), dtype=torch.bool),
        token_weights=torch.ones(len(gaps)).double(),
        ref_log_probs=ref,
    )
    output = add_terms(LossOutput(torch.zeros(()).double(), {}), batch, ref_kl_coef=1.0, **settings)
    (gradient,) = torch.autograd.grad(output.loss, log_probs)
    return output.loss.detach(), gradient


def test_beyond_the_largest_gap_k3_is_its_tangent_and_within_nothing_changes():
    inside, outside = [-30.0, -2.0, 0.0, 1.0, 2.0], [2.5, 20.0]
    for gap in inside:
        torch.testing.assert_close(pulled([gap], ref_kl_max_gap=2.0), pulled([gap]), rtol=1e-14, atol=0)
    for gap in outside:
        value, gradient = pulled([gap], ref_kl_max_gap=2.0)
        slope = math.exp(2.0) - 1
        assert float(value) == pytest.approx(math.exp(2.0) - 1 - 2.0 + slope * (gap - 2.0), rel=1e-12)
        assert float(gradient) == pytest.approx(-slope, rel=1e-12)


def test_one_token_far_below_the_reference_holds_the_gradient_unless_the_gap_is_bounded():
    gaps = [20.0] + [0.5] * 1000
    for settings, expected in (({}, True), ({"ref_kl_max_gap": 3.0}, False)):
        gradient = pulled(gaps, **settings)[1].abs()
        assert bool(gradient[0] > 100 * gradient[1:].sum()) == expected


@pytest.mark.parametrize("gap", [0.0, -1.0, 51.0, float("nan")])
def test_an_impossible_gap_is_refused(gap, make_batch):
    with pytest.raises(ConfigError, match="ref_kl_max_gap is"):
        add_terms(get_loss("ppo_clip")(make_batch(4)), make_batch(4), ref_kl_max_gap=gap)
