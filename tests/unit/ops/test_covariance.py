"""Token covariance against float64."""

import pytest
import torch

from megacov.ops import covariance, masked
from tests.support import reference


def _tokens(num_tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.empty(num_tokens).exponential_(2.0, generator=generator)
    advantages = torch.randn(num_tokens // 10, generator=generator).repeat_interleave(10)
    kept_mask = torch.rand(num_tokens, generator=generator) < 0.8
    return log_probs, advantages, kept_mask


@pytest.mark.parametrize("shape", [(1000,), (20, 50)])
def test_equals_float64(shape):
    log_probs, advantages, kept_mask = (tensor.view(shape) for tensor in _tokens(1000))
    cov = covariance(log_probs, advantages, kept_mask, group=None)
    assert cov.dtype == torch.float32
    assert cov.shape == shape
    expected = reference.covariance(log_probs, advantages, kept_mask)
    torch.testing.assert_close(cov.double(), expected, rtol=1e-7, atol=1e-12)


def test_neither_order_nor_blocks_of_the_tokens_change_a_bit(monkeypatch):
    tokens = _tokens(10_000)
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))
    in_one_block = covariance(*tokens, group=None)
    monkeypatch.setattr(masked, "CPU_BLOCK", 777)
    assert torch.equal(in_one_block[order], covariance(*(tensor[order] for tensor in tokens), group=None))


def test_what_is_outside_the_mask_is_zero_whatever_its_value():
    log_probs = torch.tensor([-1.0, float("nan"), -3.0, float("-inf")])
    advantages = torch.tensor([1.0, 5.0, -1.0, float("nan")])
    cov = covariance(log_probs, advantages, torch.tensor([True, False, True, False]), group=None)
    assert cov.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_constant_advantages_give_exact_zeros():
    log_probs = _tokens(1000)[0]
    cov = covariance(log_probs, torch.full((1000,), 0.1), torch.ones(1000, dtype=torch.bool), group=None)
    assert cov.abs().max() == 0


def test_no_tokens_and_no_gradient():
    empty = torch.empty(0)
    assert covariance(empty, empty, torch.empty(0, dtype=torch.bool), group=None).shape == (0,)
    nothing = covariance(torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.bool), group=None)
    assert nothing.tolist() == [0.0, 0.0, 0.0]
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    cov = covariance(log_probs, torch.tensor([1.0, 0.0]), torch.tensor([True, True]), group=None)
    assert not cov.requires_grad
