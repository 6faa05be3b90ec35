"""STEER's weights, against a loop in float64 over the formula of its authors."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from megacov.selection import SelectionInputs, get_selector

N = 400
STEER = get_selector("steer")


def make_inputs(*, advantage_scale: float = 1.0, **changes) -> SelectionInputs:
    generator = torch.Generator().manual_seed(4)
    log_probs = -torch.empty(N).exponential_(1.5, generator=generator)
    kept_mask = torch.rand(N, generator=generator) < 0.8
    fields = {
        "log_probs": log_probs,
        "old_log_probs": log_probs - 0.3 * torch.randn(N, generator=generator),
        "policy_advantages": advantage_scale * torch.randn(N, generator=generator),
        "current_entropy": 2 * torch.rand(N, generator=generator),
        "cov": torch.zeros(N),
        "kept_mask": kept_mask,
        "eligible_mask": kept_mask & (torch.rand(N, generator=generator) < 0.9),
        "token_ids": torch.arange(N),
    }
    return SelectionInputs(**{**fields, **changes}, seed=0, update=0, group=None)


def published_changes(inputs: SelectionInputs) -> list[float]:
    """|Omega| of each token that has a gradient, 0 of the others."""
    found = []
    for i in range(N):
        p, old = exp(inputs.log_probs[i].item()), exp(inputs.old_log_probs[i].item())
        omega = inputs.policy_advantages[i].item() / old * p * (1 - p) * (log(p) + inputs.current_entropy[i].item())
        found.append(abs(omega) if inputs.eligible_mask[i] else 0.0)
    return found


@pytest.mark.parametrize(("min_weight", "min_scale"), [(0.8, 0.02), (0.3, 0.02), (0.8, 50.0), (1.0, 0.02)])
def test_weights_are_those_of_the_formula(min_weight, min_scale):
    inputs = make_inputs()
    mask, weights, found = STEER.choose(inputs, min_weight=min_weight, min_scale=min_scale)
    changes = published_changes(inputs)
    k = -log(min_weight) / max(max(changes), min_scale)
    expected = torch.tensor([exp(-k * change) for change in changes], dtype=torch.float64)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(STEER.scores(inputs).double(), torch.tensor(changes).double(), rtol=1e-5, atol=1e-9)
    assert weights.dtype == torch.float32
    assert torch.equal(mask, weights < 1)
    assert mask.any() == (min_weight < 1)
    assert float(found["steer_largest_change"]) == pytest.approx(max(changes), rel=1e-6)
    assert bool(weights.min() == torch.tensor(min_weight)) == (min_scale < 50)


def test_clipped_tokens_neither_count_nor_set_the_scale():
    """The largest change of all is a clipped token's; by the authors' code it would set the scale."""
    inputs = make_inputs()
    advantages, entropy = inputs.policy_advantages.clone(), inputs.current_entropy.clone()
    clipped = int((inputs.kept_mask & ~inputs.eligible_mask).nonzero()[0])
    expected = STEER.choose(inputs, min_weight=0.8, min_scale=0.02)[1]
    advantages[clipped], entropy[clipped] = 1e6, 5.0
    found = STEER.choose(
        make_inputs(policy_advantages=advantages, current_entropy=entropy), min_weight=0.8, min_scale=0.02
    )[1]
    assert found[clipped] == 1
    assert torch.equal(found, expected)


def test_what_is_masked_does_not_count():
    settings, clean = {"min_weight": 0.8, "min_scale": 0.02}, make_inputs()
    names = ("log_probs", "old_log_probs", "policy_advantages", "current_entropy")
    spoil = {name: torch.where(clean.kept_mask, getattr(clean, name), float("nan")) for name in names}
    assert torch.equal(STEER.choose(make_inputs(**spoil), **settings)[1], STEER.choose(clean, **settings)[1])
    nothing = torch.zeros(N, dtype=torch.bool)
    mask, weights, _ = STEER.choose(make_inputs(kept_mask=nothing, eligible_mask=nothing), **settings)
    assert not mask.any()
    assert (weights == 1).all()


@pytest.mark.parametrize(("log_prob", "old"), [(0.0, 0.0), (-90.0, -90.0), (-1e-8, -80.0), (-200.0, -0.1)])
def test_the_ends_of_the_range_of_probabilities_are_finite(log_prob, old):
    inputs = make_inputs(log_probs=torch.full((N,), log_prob), old_log_probs=torch.full((N,), old))
    weights = STEER.choose(inputs, min_weight=0.8, min_scale=0.02)[1]
    assert STEER.scores(inputs).isfinite().all()
    assert ((weights >= 0.8 - 1e-7) & (weights <= 1)).all()


def test_a_missing_entropy_is_named():
    with pytest.raises(ValueError, match="entropies that SelectionInputs does not have"):
        STEER(make_inputs(current_entropy=None), min_weight=0.8, min_scale=0.02)
