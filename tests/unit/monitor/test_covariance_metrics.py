"""Covariance and selection metrics against sorting and counting, on one rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megacov.monitor.covariance_metrics import (
    HISTOGRAM_LIMITS,
    TOP_RATIOS,
    covariance_histogram,
    covariance_metrics,
    selection_metrics,
)
from megacov.monitor.tags import TAGS
from megacov.ops import covariance
from megacov.selection import SELECTORS

NUM_TOKENS = 4000


@pytest.fixture(scope="module")
def tokens() -> dict[str, torch.Tensor]:
    """Tokens with NaN where the mask is False; a sixth have no advantage."""
    generator = torch.Generator().manual_seed(2)
    kept_mask = torch.rand(NUM_TOKENS, generator=generator) < 0.9
    log_probs = -torch.empty(NUM_TOKENS).exponential_(1.0, generator=generator)
    advantages = torch.randint(-2, 4, (NUM_TOKENS,), generator=generator).float()
    log_probs = torch.where(kept_mask, log_probs, float("nan"))
    return {
        "cov": covariance(log_probs, advantages, kept_mask, group=None),
        "log_probs": log_probs,
        "advantages": advantages,
        "kept_mask": kept_mask,
        "token_ids": torch.arange(NUM_TOKENS),
    }


def test_moments_and_tails_equal_a_sort(tokens):
    got = covariance_metrics(**tokens, group=None)
    kept = tokens["cov"][tokens["kept_mask"]].double().sort(descending=True).values
    assert got["cov/mean"].item() == pytest.approx(kept.mean().item())
    assert got["cov/std"].item() == pytest.approx(kept.std(correction=0).item())
    for name, ratio in TOP_RATIOS.items():
        assert got[f"cov/top_{name}"].item() == pytest.approx(kept[: max(1, int(ratio * len(kept)))].mean().item())
    assert f"cov/top_{next(iter(TOP_RATIOS))}" == "cov/top_0.02pct"


def test_quadrants_split_all_tokens_and_the_selected_ones(tokens):
    mask, log_probs, advantages = tokens["kept_mask"], tokens["log_probs"], tokens["advantages"]
    selected = mask & (tokens["cov"] > 1.5)
    got = covariance_metrics(**tokens, group=None, selected=selected)
    is_high = log_probs >= log_probs[mask].mean()
    expected = {
        "pos_adv_high_lp": (advantages > 0) & is_high,
        "pos_adv_low_lp": (advantages > 0) & ~is_high,
        "neg_adv_high_lp": (advantages < 0) & is_high,
        "neg_adv_low_lp": (advantages < 0) & ~is_high,
    }
    for name, quadrant in expected.items():
        assert got[f"cov/quadrant_{name}"].item() == pytest.approx(quadrant[mask].double().mean().item())
        assert got[f"selection/quadrant_{name}"].item() == pytest.approx(quadrant[selected].double().mean().item())
    total = sum(got[f"cov/quadrant_{name}"] for name in expected)
    assert total.item() == pytest.approx((advantages[mask] != 0).double().mean().item())


def test_selection_by_rank(tokens):
    mask, scores = tokens["kept_mask"], tokens["cov"]
    order = scores.masked_fill(~mask, -torch.inf).argsort(descending=True)
    selected = torch.zeros_like(mask).scatter(0, order[:40], True)
    elsewhere = torch.zeros_like(mask).scatter(0, order[30:70], True)
    got = selection_metrics(selected, mask, group=None, scores=scores, micro_batch_selected=elsewhere)
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {
            "selection/count": 40,
            "selection/effective_ratio": 40 / mask.sum().item(),
            "selection/threshold": scores[order[39]].item(),
            "selection/margin": (scores[order[39]].double() - scores[order[40]].double()).item(),
            "selection/overlap_micro_batch": 10 / 40,
        }
    )


def test_selection_out_of_a_band(tokens):
    mask, scores = tokens["kept_mask"], tokens["cov"]
    candidates = mask & (scores > 0.5) & (scores < 2.0)
    selected = candidates & (tokens["token_ids"] % 7 == 0)
    got = selection_metrics(selected, mask, group=None, candidates=candidates)
    assert got.keys() == {"selection/count", "selection/effective_ratio", "selection/band_population"}
    assert got["selection/band_population"] == candidates.sum()
    nothing = selection_metrics(mask & ~mask, mask, group=None, candidates=mask & ~mask, micro_batch_selected=selected)
    assert nothing["selection/count"] == nothing["selection/effective_ratio"] == 0
    assert nothing["selection/overlap_micro_batch"].isnan()


def test_histogram_equals_numpy(tokens):
    cov = tokens["cov"].clone()
    cov[tokens["kept_mask"].nonzero()[:4, 0]] = torch.tensor([-500.0, 0.0, 1.0, 500.0])
    got = covariance_histogram(cov, tokens["kept_mask"], group=None)
    kept = cov[tokens["kept_mask"]].double().numpy()
    # numpy's bins hold their lower end, ours the upper: negate both the values and the limits.
    expected, _ = np.histogram(-kept, bins=[-np.finfo(float).max, *[-limit for limit in got.limits[-2::-1]], np.inf])
    assert got.counts == expected[::-1].tolist()
    assert got.limits == HISTOGRAM_LIMITS == sorted(HISTOGRAM_LIMITS)
    assert (got.minimum, got.maximum) == (-500.0, 500.0)
    assert got.total == pytest.approx(kept.sum())
    assert got.total_squares == pytest.approx((kept**2).sum())


def test_a_histogram_of_what_is_not_finite_says_so():
    cov = torch.tensor([0.5, float("nan"), float("inf"), -float("inf")])
    histogram = covariance_histogram(cov, torch.tensor([True] * 4), group=None)
    assert sum(histogram.counts) == 4
    assert np.isnan(histogram.total)


def test_every_metric_is_declared(tokens):
    mask = tokens["kept_mask"]
    metrics = {
        **covariance_metrics(**tokens, group=None, selected=mask),
        **selection_metrics(mask, mask, group=None, scores=tokens["cov"], micro_batch_selected=mask),
        **selection_metrics(mask, mask, group=None, candidates=mask),
    }
    declared = {tag for tag in TAGS if tag.startswith(("cov/", "selection/"))}
    of_methods = {f"selection/{name}" for selector in SELECTORS.values() for name in selector.finds}
    assert metrics.keys() == declared - of_methods - {"cov/histogram", "selection/uninformative"}
