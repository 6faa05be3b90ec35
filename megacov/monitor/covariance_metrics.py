"""Metrics of the token covariance and of the selection made from it, under their tags.

t: response tokens of this rank, laid flat. Only `covariance_histogram` waits for the device.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from megacov.monitor.metrics import masked_means
from megacov.ops import masked_extremes
from megacov.parallel.collectives import all_reduce_sum
from megacov.selection import global_top_k, selection_margin, selection_quota

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

TOP_RATIOS = {"0.02pct": 2e-4, "0.2pct": 2e-3, "2pct": 0.02, "20pct": 0.2, "50pct": 0.5}

_MAGNITUDES = [10 ** (exponent / 4) for exponent in range(-16, 9)]
HISTOGRAM_LIMITS = [-m for m in reversed(_MAGNITUDES)] + [0.0, *_MAGNITUDES, sys.float_info.max]
"""Upper ends of the bins: four a decade from 1e-4 to 100 on either side of 0; the outermost bins are open."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by bin, on the host. Bin i holds values in (limits[i - 1], limits[i]]."""

    limits: list[float]
    counts: list[float]
    minimum: float
    maximum: float
    total: float
    total_squares: float


def covariance_metrics(
    cov: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    kept_mask: Tensor,
    token_ids: Tensor,
    *,
    group: ProcessGroup | None,
    selected: Tensor | None = None,
) -> dict[str, Tensor]:
    """Mean, spread and upper tail of the covariance, and the share of tokens in each quadrant.

    A quadrant is a sign of the advantage (about 0) with a side of the log-prob (about its mean).

    Args:
        cov: [t] float32, from megacov.ops.covariance; read only.
        log_probs: [t] float, the ones cov was computed from.
        advantages: [t] float.
        kept_mask: [t] bool.
        token_ids: [t] int64, unique over the group.
        group: ranks that hold the other tokens of the selection scope.
        selected: [t] bool, or None; adds the quadrants of the selected tokens.

    Returns:
        `cov/*` and, with `selected`, `selection/quadrant_*` (NaN if nothing is selected); scalar float64.

    Collectives: group: SUM [3, 3] float64; for each of the five tails SUM [] int64 and those of global_top_k;
        SUM [9, 3] float64, or [13, 3] with `selected`.
    """
    squares = cov.double().square()
    moments = {"cov": (cov, kept_mask), "square": (squares, kept_mask), "log_prob": (log_probs, kept_mask)}
    mean, mean_square, mean_log_prob = masked_means(moments, group=group).values()
    quadrants = _quadrants(advantages, log_probs.detach() >= mean_log_prob)
    terms = {f"cov/quadrant_{name}": (mask, kept_mask) for name, mask in quadrants.items()}
    for name, ratio in TOP_RATIOS.items():
        quota = selection_quota(kept_mask, ratio=ratio, group=group)
        terms[f"cov/top_{name}"] = (cov, global_top_k(cov, kept_mask, token_ids, k=quota, group=group))
    if selected is not None:
        terms |= {f"selection/quadrant_{name}": (mask, selected) for name, mask in quadrants.items()}
    std = (mean_square - mean.square()).clamp(min=0).sqrt()
    return {"cov/mean": mean, "cov/std": std, **masked_means(terms, group=group)}


def selection_metrics(
    selected: Tensor,
    kept_mask: Tensor,
    *,
    group: ProcessGroup | None,
    scores: Tensor | None = None,
    candidates: Tensor | None = None,
    micro_batch_selected: Tensor | None = None,
) -> dict[str, Tensor]:
    """Size and threshold of a selection, and how much of it a selection in each micro-batch would share.

    Args:
        selected: [t] bool.
        kept_mask: [t] bool.
        group: ranks that hold the other tokens of the selection scope.
        scores: [t] float that the selection ranks by (cov, entropy), read only; None if it is random, or if each
            micro-batch has its own threshold.
        candidates: [t] bool, tokens that a random selection (Clip-Cov) draws from; None for a selection by rank.
        micro_batch_selected: [t] bool, tokens that the same method selects with the same ratio in each micro-batch
            alone; None if that was not computed.

    Returns:
        `selection/count`, `effective_ratio`; `threshold` and `margin` with `scores`, `band_population` with
        `candidates`; `overlap_micro_batch` with `micro_batch_selected`, NaN if nothing is selected. All are scalar
        float64.

    Collectives: group: SUM [2 to 4] int64; with `scores`, MAX [2, 2] float64.
    """
    masks = {"tokens": kept_mask, "selected": selected}
    if candidates is not None:
        masks["candidates"] = candidates
    if micro_batch_selected is not None:
        masks["overlap"] = selected & micro_batch_selected
    sums = all_reduce_sum(torch.stack([mask.sum() for mask in masks.values()]), group=group)
    counts = dict(zip(masks, sums.double(), strict=True))
    metrics = {
        "selection/count": counts["selected"],
        "selection/effective_ratio": counts["selected"] / counts["tokens"],
    }
    if scores is not None:
        threshold, margin = selection_margin(scores, selected, kept_mask, group=group)
        metrics |= {"selection/threshold": threshold, "selection/margin": margin}
    if candidates is not None:
        metrics["selection/band_population"] = counts["candidates"]
    if micro_batch_selected is not None:
        metrics["selection/overlap_micro_batch"] = counts["overlap"] / counts["selected"]
    return metrics


def covariance_histogram(cov: Tensor, kept_mask: Tensor, *, group: ProcessGroup | None) -> Histogram:
    """Histogram of the covariance over all ranks. Waits for the device.

    Args:
        cov: [t] float32; read only.
        kept_mask: [t] bool.
        group: ranks that hold the other tokens.

    Returns:
        Counts in the bins of HISTOGRAM_LIMITS, equal on all ranks. If a covariance on any rank is not finite, neither
        are the total and at least one extreme.

    Collectives: group: SUM [54] float64, MAX [2, 2] float64.
    """
    values, weights = cov.double().where(kept_mask, 0.0), kept_mask.double()
    limits = torch.tensor(HISTOGRAM_LIMITS, dtype=torch.float64, device=cov.device)
    # bucketize puts NaN beyond the last bin, and an index out of range kills the process on a GPU. The total shows NaN.
    bins = torch.bucketize(values, limits).clamp(max=len(limits) - 1)
    counts = limits.new_zeros(len(limits)).index_add(0, bins, weights)
    moments = torch.stack([values.sum(), values.square().sum()])
    *totals, total, total_squares = all_reduce_sum(torch.cat([counts, moments]), group=group).tolist()
    smallest, largest = torch.stack(masked_extremes(cov, kept_mask, group=group)).tolist()
    return Histogram(HISTOGRAM_LIMITS, totals, smallest, largest, total, total_squares)


def _quadrants(advantages: Tensor, is_high: Tensor) -> dict[str, Tensor]:
    """[t] bool each. A token with advantage 0 is in no quadrant."""
    is_positive, is_negative = advantages > 0, advantages < 0
    return {
        "pos_adv_high_lp": is_positive & is_high,
        "pos_adv_low_lp": is_positive & ~is_high,
        "neg_adv_high_lp": is_negative & is_high,
        "neg_adv_low_lp": is_negative & ~is_high,
    }
