"""The gradient written over the logits: the same bits, and nobody reads it for the logits in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megacov.ops import vocab_parallel_log_probs_and_entropy


def _inputs(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_tokens, 40, generator=generator) * 4, torch.randint(
        0, 20, (num_tokens,), generator=generator
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropy_grad", [False, True])
def test_a_gradient_over_the_logits_has_the_same_bits(dtype: torch.dtype, entropy_grad: bool) -> None:
    logits, targets = _inputs(50)
    leaf = logits.to(dtype).requires_grad_()
    found = {}
    for overwrites in (False, True):
        given = leaf * 1.0
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            given,
            targets,
            tp_group=None,
            temperature=0.7,
            entropy_grad=entropy_grad,
            vocab_size=37,
            overwrites_logits=overwrites,
        )
        (gradient,) = torch.autograd.grad((log_probs - 0.1 * entropy).sum(), given, retain_graph=True)
        assert (gradient.data_ptr() == given.data_ptr()) == overwrites
        found[overwrites] = gradient.clone()
        if overwrites:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                log_probs.sum().backward()
        else:
            assert torch.equal(given, leaf)
    assert torch.equal(found[False], found[True])


def test_logits_that_others_need_are_not_overwritten_in_silence() -> None:
    logits, targets = _inputs(5)
    arguments: dict[str, Any] = {"tp_group": None, "overwrites_logits": True}
    with pytest.raises(ValueError, match="leaf"):
        vocab_parallel_log_probs_and_entropy(logits.requires_grad_(), targets, **arguments)
    shared = logits * 1.0
    other = shared.square().sum()
    log_probs, _ = vocab_parallel_log_probs_and_entropy(shared, targets, **arguments)
    log_probs.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    strided = (logits.detach() * 1.0)[:, ::2].requires_grad_() * 1.0
    strided = torch.cat([strided, strided], 1)[:, : strided.shape[1]]
    log_probs, _ = vocab_parallel_log_probs_and_entropy(strided, targets % strided.shape[1], **arguments)
    kept = strided.detach().clone()
    log_probs.sum().backward()
    assert not strided.is_contiguous() and torch.equal(strided, kept)
