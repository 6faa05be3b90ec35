"""How far what some ranks found is from what one rank found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

QUANTITIES = ("losses", "grad_norms", "metrics", "statistics")


def merge(by_rank: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of all ranks as one."""
    told = [result for result in by_rank if "selected" in result]
    return {
        "log_probs": {token: value for result in told for token, value in result["log_probs"].items()},
        "selected": set().union(*(result["selected"] for result in told)),
        **{
            name: [sum(values) for values in zip(*(result[name] for result in told), strict=True)]
            for name in ("losses", "loss_terms", "metrics")
        },
        "loss_tokens": [result["loss_tokens"] for result in told],
        "margin": min(result["margin"] for result in told),
        "statistics": told[0]["statistics"],
        "token_report": _same_on_all([result["token_report"] for result in by_rank]),
        "grad_norms": by_rank[0]["grad_norms"],
        "weights": by_rank[0]["weights"],
        "theorem": [result["theorem"] for result in by_rank],
    }


def _same_on_all(reports: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The report of single tokens, which all ranks must hold bit by bit."""
    first = reports[0]
    for report in reports:
        assert report.keys() == first.keys()
        assert all(torch.equal(report[name].nan_to_num(9e9), first[name].nan_to_num(9e9)) for name in first)
    return first


@dataclass(frozen=True)
class Difference:
    """How one algorithm in one layout differs from one rank.

    selected: tokens, 0 where the algorithm selects none; mismatches: those that one of the two selected alone.
    relative: largest difference over largest value, of losses, gradient norms, the sums of a loss's metrics (clipped
        tokens among them), covariance statistics, values and sums of single tokens, and each weight.
    loss_noise: largest difference of a loss over the size of its terms at a ratio of 1, which nearly cancel in a loss.
    log_prob_noise: largest absolute difference of a log-prob, nats.
    margin: from the line of the selection to the nearest token that it divides, the smaller of both.
    fewest_tokens: loss tokens of the rank that had fewest in an update.
    theorem: relative difference of each predicted and observed change of entropy, the largest over the ranks; empty
        where none was measured.
    """

    selected: int
    mismatches: int
    relative: dict[str, float]
    loss_noise: float
    log_prob_noise: float
    margin: float
    fewest_tokens: int
    theorem: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest relative difference."""
        return largest(self.relative.values())

    @property
    def is_near_tied(self) -> bool:
        """Whether noise could have changed the selection; a covariance moves by up to twice the log-prob here."""
        return self.margin <= 4 * self.log_prob_noise


def largest(values: Iterable[float]) -> float:
    """The largest, or NaN if one of them is; `max` would pass over a NaN."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())


def _relative(found: Sequence[float], expected: Sequence[float]) -> float:
    scale = largest(abs(value) for value in expected)
    return largest(abs(a - b) for a, b in zip(found, expected, strict=True)) / scale


def _relative_rows(found: torch.Tensor, expected: torch.Tensor) -> float:
    """As `_relative`, row by row, the largest; NaN where only one of them has a NaN."""
    difference = (found - expected).abs().where(~(found.isnan() & expected.isnan()), 0.0)
    return float((difference.amax(dim=1) / expected.nan_to_num().abs().amax(dim=1).clamp(min=1e-9)).max())


def compare(found: dict[str, Any], expected: dict[str, Any]) -> Difference:
    """Two merged results of one algorithm."""
    assert found["log_probs"].keys() == expected["log_probs"].keys(), "a token is missing or too many"
    assert found["weights"].keys() == expected["weights"].keys()
    weights = [
        float((found["weights"][name] - weight).abs().max() / weight.abs().max())
        for name, weight in expected["weights"].items()
    ]
    noise = [abs(found["log_probs"][token] - value) for token, value in expected["log_probs"].items()]
    return Difference(
        selected=len(found["selected"]),
        mismatches=len(found["selected"] ^ expected["selected"]),
        relative={
            **{name: _relative(found[name], expected[name]) for name in QUANTITIES},
            "token_report": largest(
                _relative_rows(found["token_report"][name], rows) for name, rows in expected["token_report"].items()
            ),
            "weights": largest(weights),
        },
        loss_noise=largest(
            abs(a - b) / terms
            for a, b, terms in zip(found["losses"], expected["losses"], expected["loss_terms"], strict=True)
        ),
        log_prob_noise=largest(noise),
        margin=min(found["margin"], expected["margin"]),
        fewest_tokens=min(min(counts) for counts in found["loss_tokens"]),
        theorem={
            tag: largest(abs(values[tag] / expected["theorem"][0][tag] - 1) for values in found["theorem"])
            for tag in found["theorem"][0]
        },
    )
