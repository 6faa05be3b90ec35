"""Predicted changes of entropy are those of real steps on tabular softmax policies, in sign and size, in float64."""

from __future__ import annotations

import pytest
import torch

from megacov.monitor.theorem import natural_gradient_change, plain_gradient_change
from megacov.ops import vocab_parallel_sums

STATES, TOKENS = 7, 12
KINDS = {"natural": natural_gradient_change, "plain": plain_gradient_change}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def tabular(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and advantages of each token in each state; the advantages have another mean in each."""
    generator = torch.Generator().manual_seed(seed)
    logits, advantages = torch.randn(2, STATES, TOKENS, dtype=torch.float64, generator=generator) * 2
    return logits, advantages + torch.randn(STATES, 1, dtype=torch.float64, generator=generator)


def entropies(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def predicted(kind: str, logits: torch.Tensor, tokens: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    sums = vocab_parallel_sums(logits, tokens, tp_group=None)
    if kind == "natural":
        return natural_gradient_change(sums.log_probs, sums.entropy, advantages)
    return plain_gradient_change(*sums, advantages)


def sampled_step(kind: str, logits: torch.Tensor, tokens: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """What a token that was sampled in each state adds to its logits."""
    p, chosen = logits.softmax(-1), torch.nn.functional.one_hot(tokens, TOKENS)
    direction = chosen / p.gather(-1, tokens[:, None]) if kind == "natural" else chosen - p
    return advantages[:, None] * direction


def expected_step(kind: str, logits: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """The step with exact advantages: the gradient of the expected advantage, or the natural one, which is A itself."""
    if kind == "natural":
        return advantages
    leaf = logits.clone().requires_grad_()
    (leaf.softmax(-1) * advantages).sum().backward()
    return leaf.grad


def change(logits: torch.Tensor, step: torch.Tensor, size: float = 1e-6) -> torch.Tensor:
    """Of each state's entropy, observed: a central difference, exact to the square of the size."""
    return (entropies(logits + size * step) - entropies(logits - size * step)) / (2 * size)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("seed", range(3))
def test_each_sampled_token_changes_the_entropy_as_predicted(kind, seed):
    logits, advantages = tabular(seed)
    tokens = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    own = advantages.gather(-1, tokens[:, None]).squeeze(1)
    observed = change(logits, sampled_step(kind, logits, tokens, own))
    torch.testing.assert_close(predicted(kind, logits, tokens, own), observed, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("seed", range(3))
def test_the_expectation_over_tokens_and_states_is_the_change_of_the_mean_entropy(kind, seed):
    logits, advantages = tabular(seed)
    tokens = torch.arange(TOKENS).repeat(STATES)
    each = predicted(kind, logits.repeat_interleave(TOKENS, 0), tokens, advantages.flatten()).view(STATES, TOKENS)
    expectation = (logits.softmax(-1) * each).sum(-1).mean()
    observed = change(logits, expected_step(kind, logits, advantages)).mean()
    torch.testing.assert_close(expectation, observed, rtol=1e-6, atol=1e-8)
    assert observed.abs() > 1e-2


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_real_step_differs_by_the_square_of_its_size(kind):
    logits, advantages = tabular(0)
    step, slope = (
        expected_step(kind, logits, advantages),
        change(logits, expected_step(kind, logits, advantages)).mean(),
    )
    errors = [(entropies(logits + size * step) - entropies(logits)).mean() - size * slope for size in (1e-2, 5e-3)]
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.05)
