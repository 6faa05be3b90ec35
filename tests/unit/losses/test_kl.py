"""KL estimators against the exact divergence of two categorical distributions: direction, bias and gradient."""

from __future__ import annotations

import pytest
import torch

from megacov.errors import ConfigError
from megacov.losses.kl import estimate_kl


def distributions(distance: float):
    """Log-probs of q and p over 7 outcomes; p's logits carry the gradient."""
    generator = torch.Generator().manual_seed(3)
    q_logits = torch.randn(7, generator=generator, dtype=torch.float64)
    p_logits = q_logits + distance * torch.randn(7, generator=generator, dtype=torch.float64)
    p_logits.requires_grad_()
    return q_logits.log_softmax(0), p_logits.log_softmax(0), p_logits


@pytest.mark.parametrize(
    ("estimator", "distance", "tolerance"), [("k1", 1.0, 1e-12), ("k3", 1.0, 1e-12), ("k2", 0.01, 1e-6)]
)
def test_the_mean_over_samples_of_q_is_kl_q_p(estimator, distance, tolerance):
    log_q, log_p, _ = distributions(distance)
    exact = (log_q.exp() * (log_q - log_p)).sum()
    mean = (log_q.exp() * estimate_kl(log_p - log_q, estimator=estimator)).sum()
    assert abs(mean - exact) < tolerance
    backward_kl = (log_p.exp() * (log_p - log_q)).sum()
    assert abs(exact - backward_kl) > 10 * tolerance or estimator == "k2"


def test_the_mean_gradient_of_k3_is_that_of_kl_q_p():
    """So KL-Cov's k3, on tokens of the old policy q, follows the gradient of KL(old || new)."""
    log_q, log_p, p_logits = distributions(1.0)
    exact = (log_q.exp() * (log_q - log_p)).sum()
    mean = (log_q.exp() * estimate_kl(log_p - log_q, estimator="k3")).sum()
    expected = torch.autograd.grad(exact, p_logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(mean, p_logits)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("estimator", ["abs", "k2", "k3"])
def test_penalties_are_zero_at_no_move_and_positive_elsewhere(estimator):
    log_ratio = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0], dtype=torch.float64)
    values = estimate_kl(log_ratio, estimator=estimator)
    assert values[2] == 0
    assert (values[[0, 1, 3, 4]] > 0).all()


def test_k3_keeps_its_digits_for_a_small_move_in_float32():
    log_ratio = torch.tensor([1e-3, -1e-3])
    exact = log_ratio.double().exp() - 1 - log_ratio.double()
    torch.testing.assert_close(estimate_kl(log_ratio, estimator="k3").double(), exact, rtol=5e-4, atol=0)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ConfigError, match="'k4' is unknown: choose one of abs, k1, k2, k3"):
        estimate_kl(torch.zeros(1), estimator="k4")
