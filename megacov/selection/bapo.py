"""BAPO: finds the range of the ratio in which positive tokens hold their share, and selects the tokens beyond it.

Source: "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive
Clipping" (arXiv 2510.18927). Shapes: [t] tokens of this rank.

The authors' code (WooooDyy/BAPO, recipe/bapo/policy_loss.py) differs in two points: a clipped token still counts in its
sums, with the bound in the place of its ratio, though it has no gradient; and a negative token with a ratio above 3 is
clipped too (dual clip). Here the sums are of what the gradient holds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from megacov.ops.masked import exact_parts
from megacov.parallel.collectives import all_reduce_sum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def balanced_range(
    log_ratios: Tensor,
    advantages: Tensor,
    kept_mask: Tensor,
    *,
    positive_share: float,
    lower: tuple[float, float],
    upper: tuple[float, float],
    step: float,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first range in which positive tokens hold at least their share of the gradient; the widest if none does.

    A token with a gradient contributes rho |A|; one beyond the range contributes nothing:

        P(c_high) = sum of rho A   over A > 0 and rho <= c_high
        N(c_low)  = sum of rho |A| over A < 0 and rho >= c_low
        the range is wide enough if P >= positive_share (P + N)

    From (lower[0], upper[0]) on, first c_low rises by `step` up to lower[1], then c_high up to upper[1]. Sums at all
    candidates travel in one message, where the authors' code sends one for each candidate, in every micro-batch.

    Args:
        log_ratios: [...] float, log_probs - old_log_probs; read only.
        advantages: [...] float; read only.
        kept_mask: [...] bool; the other tokens count for nothing, whatever their values.
        positive_share: share of the positive tokens (the paper's rho_0), in (0, 1).
        lower: smallest and largest lower bound of the ratio.
        upper: smallest and largest upper bound of the ratio.
        step: between candidates.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        lower bound: [] float64, equal on all ranks and in every layout.
        upper bound: [] float64, likewise.
        share: [] float64, likewise: P / (P + N) within these bounds; NaN where no token has a gradient.

    Collectives: group: SUM [2, number of candidates + 2] float64.
    Gradient: none.
    """
    lows, highs = (_candidates(*ends, step, like=log_ratios) for ends in (lower, upper))
    ratios, signed = log_ratios.detach().double().exp().reshape(-1), advantages.detach().double().reshape(-1)
    kept = kept_mask.reshape(-1)
    # A positive token counts from the first bound that reaches it on, a negative one up to the last that it reaches.
    first_high = torch.bucketize(ratios, highs)
    number_of_lows = torch.bucketize(ratios, lows, right=True)
    place = torch.where(signed > 0, first_high, len(highs) + 1 + number_of_lows)
    parts = exact_parts(ratios * signed.abs(), kept)
    table = parts.new_zeros(2, len(highs) + 1 + len(lows) + 1).index_add_(1, place, parts)
    positive, negative = all_reduce_sum(table, group=group).split([len(highs) + 1, len(lows) + 1], dim=1)
    # Cumulative sums of each part are exact, so no order of additions shows.
    by_high, by_low = positive.cumsum(1).sum(0)[:-1], negative.flip(1).cumsum(1).flip(1).sum(0)[1:]
    # The way through the candidates: [bound or sum, place].
    low, high = torch.stack([lows, by_low]), torch.stack([highs, by_high])
    low_bound, low_sum = torch.cat([low, low[:, -1:].expand(2, len(highs) - 1)], dim=1)
    high_bound, high_sum = torch.cat([high[:, :1].expand(2, len(lows)), high[:, 1:]], dim=1)
    is_enough = high_sum >= positive_share * (high_sum + low_sum)
    is_enough[-1] = True
    chosen = is_enough.long().argmax()
    return low_bound.take(chosen), high_bound.take(chosen), (high_sum / (high_sum + low_sum)).take(chosen)


def beyond_range(log_ratios: Tensor, advantages: Tensor, kept_mask: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """[...] bool: kept tokens of positive advantage above the range, and of negative advantage below it."""
    ratios = log_ratios.detach().double().exp()
    return kept_mask & (((advantages > 0) & (ratios > upper)) | ((advantages < 0) & (ratios < lower)))


def _candidates(first: float, last: float, step: float, like: Tensor) -> Tensor:
    """[n] float64: first, first + step, ... up to last, which is among them where steps reach it but for rounding."""
    number = math.floor((last - first) / step + 1e-9) + 1
    return first + step * torch.arange(number, dtype=torch.float64, device=like.device)
