"""The shares of random policies in which signs agree, as docs/theorem.md gives them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.theorem_signs import make_policies, same_sign


def test_the_covariance_of_a_batch_has_the_sign_of_a_plain_step_in_four_of_five_policies():
    torch.set_num_threads(1)
    policies = make_policies(1500, states=1, tokens=16, spread=2.0)
    exact = policies.exact()
    torch.testing.assert_close(exact.covariance, exact.centred)  # in one state they are the same
    shares = [same_sign(policies.sampled(size).covariance, exact.gradient) for size in (16, 256)]
    assert 0.77 < shares[0] < 0.83
    assert 0.85 < shares[1] < 0.90
    assert same_sign(exact.covariance, exact.gradient) < 0.92
    assert same_sign(policies.sampled(256).gradient, exact.gradient) > 0.95


@pytest.mark.parametrize(("offset", "lowest", "highest"), [(0.0, 1.0, 1.0), (1.0, 0.70, 0.80)])
def test_over_several_states_the_covariance_may_have_the_other_sign_than_a_natural_step(offset, lowest, highest):
    torch.set_num_threads(1)
    exact = make_policies(1500, states=16, tokens=16, spread=2.0, offset=offset).exact()
    assert lowest <= same_sign(exact.covariance, exact.centred) <= highest
