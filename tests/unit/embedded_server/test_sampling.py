"""Drawing tokens: the right distribution, the right log-probs, and rows that do not disturb each other."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from megacov.embedded_server.sampling import SamplingParams, SamplingPlan, draw

V = 12


def stratified(number: int) -> torch.Tensor:
    """Uniform numbers that cover [0, 1) evenly, so that counts are probabilities up to rounding."""
    return (torch.arange(number, dtype=torch.float64) + 0.5) / number


def draw_many(logits: torch.Tensor, params: SamplingParams, *, number: int = 4000) -> torch.Tensor:
    """[v] frequencies of the tokens drawn for one row of logits."""
    plan = SamplingPlan.of([params] * number)
    tokens, _ = draw(logits.expand(number, -1), plan, stratified(number))
    return torch.bincount(tokens, minlength=V).double() / number


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[v] probabilities, token by token from the definitions."""
    probs = (logits.double() / params.temperature).softmax(-1)
    ordered = sorted(range(V), key=lambda token: -float(probs[token]))
    allowed = []
    before = 0.0
    for rank, token in enumerate(ordered):
        fits = params.top_k < 1 or rank < params.top_k
        fits = fits and before <= params.top_p and probs[token] >= params.min_p * probs.max()
        if fits:
            allowed.append(token)
        before += float(probs[token])
    kept = torch.zeros(V, dtype=torch.float64)
    kept[allowed] = probs[allowed]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=2.5),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.6),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.05),
    ],
)
def test_tokens_have_the_asked_distribution(params):
    logits = torch.randn(V) * 2.0
    torch.testing.assert_close(draw_many(logits, params), reference(logits, params), atol=2.0 / 4000, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.9])
def test_log_probs_are_scaled_and_not_renormalised(dtype, temperature):
    logits = (torch.randn(50, V) * 3.0).to(dtype)
    before = logits.clone()
    params = SamplingParams(temperature=temperature, top_k=4, top_p=0.8)
    tokens, log_probs = draw(logits, SamplingPlan.of([params] * 50), torch.rand(50, dtype=torch.float64))
    expected = (logits.double() / temperature).log_softmax(-1).gather(-1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=0.0)
    assert log_probs.dtype == torch.float32
    assert torch.equal(logits, before)


def test_temperature_zero_is_greedy_with_unscaled_log_probs():
    logits = torch.randn(20, V)
    tokens, log_probs = draw(logits, SamplingPlan.of([SamplingParams(temperature=0.0)] * 20), torch.rand(20))
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).amax(-1))


def test_rows_of_a_mixed_batch_are_drawn_as_if_alone():
    rows = [
        SamplingParams(),
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=1, temperature=0.5),
        SamplingParams(temperature=0.7, top_p=0.5),
        SamplingParams(min_p=0.3),
    ] * 8
    logits, uniforms = torch.randn(len(rows), V), torch.rand(len(rows), dtype=torch.float64)
    tokens, log_probs = draw(logits, SamplingPlan.of(rows), uniforms)
    for row, params in enumerate(rows):
        one = slice(row, row + 1)
        token, log_prob = draw(logits[one], SamplingPlan.of([params]), uniforms[one])
        assert tokens[one] == token
        torch.testing.assert_close(log_probs[one], log_prob)


def test_a_plan_of_some_rows_is_the_plan_of_their_parameters():
    rows = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, top_p=0.5),
        SamplingParams(top_k=3, temperature=0.5),
        SamplingParams(min_p=0.3),
        SamplingParams(),
    ]
    kept = [0, 2, 4]
    found, expected = SamplingPlan.of(rows).take(torch.tensor(kept)), SamplingPlan.of([rows[row] for row in kept])
    for field in fields(SamplingPlan):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name), rtol=0, atol=0)
    assert expected.filtered.tolist() == [False, True, False]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
def test_a_token_of_no_probability_is_never_drawn(uniform):
    logits = torch.full((3, V), -torch.inf)
    logits[0, 0] = logits[1, 5] = logits[2, V - 1] = 0.0
    tokens, log_probs = draw(
        logits, SamplingPlan.of([SamplingParams()] * 3), torch.full((3,), uniform, dtype=torch.float64)
    )
    assert tokens.tolist() == [0, 5, V - 1]
    assert log_probs.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_show_in_their_row_only(bad):
    logits = torch.randn(3, V)
    logits[1, 4] = bad
    _, log_probs = draw(logits, SamplingPlan.of([SamplingParams()] * 3), torch.rand(3, dtype=torch.float64))
    assert log_probs.isnan().tolist() == [False, True, False]
