"""M2PO's and BAPO's selections, against loops in float64 that go as the papers do."""

from __future__ import annotations

import math

import pytest
import torch

from megacov.selection import SelectionInputs, get_selector
from megacov.selection.bapo import balanced_range

N = 3000
BOUNDS = {"lower_start": 0.6, "lower_end": 0.9, "upper_start": 1.2, "upper_end": 3.0, "step": 0.05}


def make_inputs(seed: int, shift: float = 0.0, **changes) -> SelectionInputs:
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.empty(N).exponential_(1.5, generator=generator)
    fields = {
        "log_probs": log_probs,
        "old_log_probs": log_probs - 0.4 * torch.randn(N, generator=generator),
        "rollout_log_probs": log_probs - 0.3 * torch.randn(N, generator=generator),
        "policy_advantages": torch.randn(N, generator=generator) + shift,
        "cov": torch.zeros(N),
        "kept_mask": torch.rand(N, generator=generator) < 0.8,
        "token_ids": torch.arange(N),
    }
    return SelectionInputs(**{**fields, **changes}, seed=0, update=0, group=None)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.04, 0.08, 9.0])
def test_m2po_drops_the_largest_until_the_mean_is_small_enough(threshold):
    inputs = make_inputs(0)
    d = (inputs.log_probs.double() - inputs.rollout_log_probs.double()).tolist()
    advantages, kept = inputs.policy_advantages.tolist(), inputs.kept_mask.tolist()
    trusted = sorted((d[i] ** 2, i) for i in range(N) if kept[i] and d[i] * advantages[i] > 0)
    left_out = set()
    while trusted and sum(square for square, _ in trusted) / len(trusted) > threshold:
        left_out.add(trusted.pop()[1])
    found, _, values = get_selector("m2po").choose(inputs, threshold=threshold)
    everything = [d[i] ** 2 for i in range(N) if kept[i] and d[i] * advantages[i] > 0]
    assert float(values["m2po_second_moment"]) == pytest.approx(sum(everything) / len(everything), rel=1e-6)
    limit = min((abs(d[i]) for i in left_out), default=math.nan)
    assert float(values["m2po_limit"]) == pytest.approx(limit, rel=1e-6, nan_ok=True)
    assert set(found.nonzero().squeeze(1).tolist()) == left_out
    assert (0 < len(left_out) < N / 2) == (threshold in (0.01, 0.04, 0.08)) or threshold == 0.0


def walk(inputs: SelectionInputs, share: float) -> tuple[float, float]:
    """One candidate at a time, each with a sum over all tokens."""
    ratios = (inputs.log_probs.double() - inputs.old_log_probs.double()).exp()[inputs.kept_mask]
    advantages = inputs.policy_advantages.double()[inputs.kept_mask]
    low, high = BOUNDS["lower_start"], BOUNDS["upper_start"]
    while True:
        positive = (ratios * advantages)[(advantages > 0) & (ratios <= high)].sum()
        negative = -(ratios * advantages)[(advantages < 0) & (ratios >= low)].sum()
        if positive >= share * (positive + negative):
            return low, high
        if low + BOUNDS["step"] < BOUNDS["lower_end"] + 1e-9:
            low += BOUNDS["step"]
        elif high + BOUNDS["step"] < BOUNDS["upper_end"] + 1e-9:
            high += BOUNDS["step"]
        else:
            return low, high


@pytest.mark.parametrize(
    ("shift", "share", "where"),
    [
        (0.5, 0.5, "start"),
        (0.2, 0.5, "lower"),
        (0.0, 0.5, "upper"),
        (-1.0, 0.5, "end"),
        (0.0, 0.47, "any"),
    ],
)
def test_bapo_finds_the_first_range_in_which_positive_tokens_hold_their_share(shift, share, where):
    inputs = make_inputs(1, shift)
    low, high, balance = balanced_range(
        inputs.log_probs - inputs.old_log_probs,
        inputs.policy_advantages,
        inputs.kept_mask,
        positive_share=share,
        lower=(0.6, 0.9),
        upper=(1.2, 3.0),
        step=0.05,
        group=None,
    )
    expected = walk(inputs, share)
    assert (float(low), float(high)) == pytest.approx(expected, rel=1e-12)
    found = {(0.6, 1.2): "start", (0.9, 3.0): "end"}.get((round(float(low), 6), round(float(high), 6)))
    found = found or ("lower" if round(float(high), 6) == 1.2 else "upper")
    assert where in (found, "any")

    selected, _, values = get_selector("bapo").choose(inputs, positive_share=share, **BOUNDS)
    ratios, advantages = (inputs.log_probs - inputs.old_log_probs).double().exp(), inputs.policy_advantages
    left = (ratios * advantages)[inputs.kept_mask & ~selected]
    assert float(balance) == pytest.approx(float(left[left > 0].sum() / left.abs().sum()), rel=1e-12)
    assert values == {"bapo_lower": low, "bapo_upper": high, "bapo_positive_share": balance}
    beyond = torch.where(advantages > 0, ratios > high, ratios < low) & (advantages != 0)
    assert torch.equal(selected, beyond & inputs.kept_mask)


def test_at_the_old_policy_bapo_clips_nothing():
    log_probs = make_inputs(2).log_probs
    for shift in (-1.0, 1.0):
        inputs = make_inputs(2, shift, old_log_probs=log_probs)
        assert not get_selector("bapo")(inputs, positive_share=0.5, **BOUNDS).any()


@pytest.mark.parametrize("name", ["m2po", "bapo"])
def test_what_is_masked_does_not_count(name):
    clean = make_inputs(3)
    spoil = {
        field: torch.where(clean.kept_mask, getattr(clean, field), float("nan"))
        for field in ("log_probs", "old_log_probs", "rollout_log_probs", "policy_advantages")
    }
    settings = {"threshold": 0.04} if name == "m2po" else {"positive_share": 0.5, **BOUNDS}
    expected = get_selector(name)(clean, **settings)
    assert torch.equal(get_selector(name)(make_inputs(3, **spoil), **settings), expected)
    nothing = get_selector(name).choose(make_inputs(3, kept_mask=torch.zeros(N, dtype=torch.bool)), **settings)
    assert not nothing.mask.any()
    unknown = {"m2po_second_moment", "m2po_limit", "bapo_positive_share"}
    assert {key for key, value in nothing.found.items() if value.isnan()} == unknown & nothing.found.keys()


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="SelectionInputs does not have"):
        get_selector("m2po")(make_inputs(0, log_probs=None), threshold=0.04)
