"""Sums by class against plain float64, classes at their edges, and metrics that are all declared."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from megacov.monitor.breakdown import (
    TokenSums,
    accuracy_classes,
    breakdown_metrics,
    group_accuracies,
    position_classes,
    token_sums,
)
from megacov.monitor.breakdown_tags import ACCURACY_CLASSES, POSITION_CLASSES
from megacov.monitor.tags import TAGS

NUM_TOKENS = 4000


def _tokens(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(NUM_TOKENS, generator=generator) < 0.8
    return {
        "entropy": torch.rand(NUM_TOKENS, generator=generator) * 3,
        "cov": torch.randn(NUM_TOKENS, generator=generator),
        "loss_mask": kept | (torch.rand(NUM_TOKENS, generator=generator) < 0.5),
        "kept_mask": kept,
        "selected": kept & (torch.rand(NUM_TOKENS, generator=generator) < 0.1),
    }


def _divisions(seed: int = 1) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(0, size, (NUM_TOKENS,), generator=generator), size) for size in (6, 7, 300)]


@pytest.mark.parametrize("size", [2, 3, 7, 8, 12, 16])
def test_a_share_of_right_responses_falls_into_its_class(size: int) -> None:
    for right in range(size + 1):
        share = Fraction(right, size)
        bounds = (Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
        expected = 5 if share == 1 else sum(share > bound for bound in bounds)
        for wrong in (0.0, -1.0):
            rewards = torch.tensor([1.0] * right + [wrong] * (size - right) + [wrong] * size)
            accuracies = group_accuracies(rewards, torch.tensor([7] * size + [3] * size))
            assert accuracies[:size].tolist() == [float(share)] * size
            assert accuracy_classes(accuracies).tolist() == [expected] * size + [0] * size


def test_graded_rewards_are_placed_in_their_range() -> None:
    group_ids = torch.tensor([0, 1, 0, 1, 2, 2])
    within = group_accuracies(torch.tensor([0.5, 0.25, 1.0, 0.25, 0.0, 0.5]), group_ids)
    assert within.tolist() == [0.75, 0.25, 0.75, 0.25, 0.25, 0.25]
    beyond = group_accuracies(torch.tensor([-2.0, 4.0, 0.0, 6.0, 6.0, 6.0]), group_ids)
    assert beyond.tolist() == [0.125, 0.875, 0.125, 0.875, 1.0, 1.0]


def test_a_position_falls_into_its_class() -> None:
    positions = torch.arange(20_000)
    firsts = torch.tensor([int(name) for name in POSITION_CLASSES])
    assert torch.equal(position_classes(positions), (positions[:, None] >= firsts).sum(dim=1) - 1)


def test_sums_equal_plain_ones_and_no_order_changes_a_bit() -> None:
    tokens, divisions = _tokens(), _divisions()
    found = token_sums(divisions, **tokens, group=None)
    for (classes, size), sums in zip(divisions, found, strict=True):
        for k in range(size):
            own = classes == k
            assert sums.tokens[k] == (own & tokens["loss_mask"]).sum()
            assert sums.kept[k] == (own & tokens["kept_mask"]).sum()
            assert sums.selected[k] == (own & tokens["selected"]).sum()
            for name, values, mask in (("entropy", "entropy", "loss_mask"), ("covariance", "cov", "kept_mask")):
                exact = math.fsum(tokens[values][own & tokens[mask]].tolist())
                assert getattr(sums, name)[k].item() == pytest.approx(exact, rel=1e-13, abs=1e-13)
    order = torch.randperm(NUM_TOKENS, generator=torch.Generator().manual_seed(2))
    shuffled = [(classes[order], size) for classes, size in divisions]
    again = token_sums(shuffled, **{name: values[order] for name, values in tokens.items()}, group=None)
    assert all(
        torch.equal(a, b) for one, other in zip(found, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_a_value_that_is_not_a_number_spoils_its_class_alone() -> None:
    tokens, divisions = _tokens(), _divisions()
    place = int(tokens["kept_mask"].nonzero()[0])
    outside = int((~tokens["loss_mask"]).nonzero()[0])
    tokens["cov"][place], tokens["entropy"][outside] = math.nan, math.nan
    for (classes, _), sums in zip(divisions, token_sums(divisions, **tokens, group=None), strict=True):
        assert sums.covariance.isnan().nonzero().flatten().tolist() == [int(classes[place])]
        assert not sums.entropy.isnan().any()


def test_metrics_are_declared_and_their_weighted_mean_is_that_of_all_tokens() -> None:
    tokens, divisions = _tokens(), _divisions()
    for section, names, sums in zip(
        ("cov_by_accuracy", "cov_by_position"),
        (list(ACCURACY_CLASSES), list(POSITION_CLASSES)),
        token_sums(divisions[:2], **tokens, group=None),
        strict=True,
    ):
        metrics = breakdown_metrics(sums, section=section, names=names, has_selection=True)
        assert set(metrics) == {tag for tag in TAGS if tag.startswith(f"{section}/")}
        mean = sum(metrics[f"{section}/tokens_{name}"] * metrics[f"{section}/entropy_{name}"] for name in names)
        assert mean == pytest.approx(float(tokens["entropy"][tokens["loss_mask"]].double().mean()), rel=1e-12)
        without = breakdown_metrics(sums, section=section, names=names, has_selection=False)
        assert set(metrics) - set(without) == {f"{section}/selected_{name}" for name in names}


def test_an_empty_class_has_a_share_and_no_mean() -> None:
    sums = TokenSums(*torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.5, 0.0]], dtype=torch.float64))
    metrics = breakdown_metrics(sums, section="s", names=["a", "b"], has_selection=True)
    assert (metrics["s/tokens_a"], metrics["s/entropy_a"], metrics["s/covariance_a"]) == (1.0, 1.5, 0.5)
    assert metrics["s/tokens_b"] == 0.0
    assert all(math.isnan(metrics[f"s/{name}_b"]) for name in ("covariance", "entropy", "selected"))
