"""The k largest scores over all ranks of a group, exactly, without gathering them.

A radix select: scores become integers of the same order, and the k-th largest is found digit by digit, from the top,
in histograms that are summed over the ranks. Messages have a constant size, sums of integer counts do not depend on
order, and a second radix select over the token ids breaks ties. The result therefore depends only on the set of
(score, token id), whatever rank or micro-batch holds which token. Shapes: [t] tokens of this rank.

On a GPU nothing waits for the host: k, thresholds and digits stay on the device. On a CPU, where reading values costs
nothing, tokens that can no longer be selected are dropped early, and ids are searched only where a tie is to be broken.
Neither changes the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megacov.ops.kernels.dispatch import runs_on
from megacov.parallel.collectives import all_reduce_sum
from megacov.selection.sort_keys import sort_keys

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# (shift, width) of each digit, from the top: at most 2048 bins, 16 KiB, in one message.
_DIGITS = {
    32: ((21, 11), (10, 11), (0, 10)),
    64: ((53, 11), (42, 11), (31, 11), (20, 11), (10, 10), (0, 10)),
}

# On a CPU a shortlist pays off from about this many tokens.
_SHORTLIST_FROM = 1 << 16
_MAX_GROUP_SIZE = 64


def global_top_k(
    scores: Tensor, kept_mask: Tensor, token_ids: Tensor, *, k: int | Tensor, group: ProcessGroup | None
) -> Tensor:
    """Mark the k masked tokens with the largest scores over all ranks of `group`.

    Among equal scores the smaller token id wins. -0.0 equals +0.0, and NaN ranks below -inf.

    Args:
        scores: [...] float16, bfloat16, float32, float64 or int64, the same dtype on all ranks; read only.
        kept_mask: [...] bool; tokens outside it are never marked, whatever their scores.
        token_ids: [...] int64, unique over the group among masked tokens.
        k: number of tokens to mark, at least 0 and equal on all ranks; an int, or an int64 tensor with one element on
            the device of the scores.
        group: ranks that hold the other tokens; a rank without tokens must call this too.

    Returns:
        [...] bool, True for exactly min(k, N) tokens, where N is the number of masked tokens of all ranks.

    Collectives: group: SUM [2048] or [1024] int64, 9 times for floats up to 32 bits, else 12 times; on a CPU,
        where the torch path runs, 3 or 6 times if no tie has to be broken, which all ranks know alike.
    Gradient: none.

    Raises:
        ValueError: if shapes or dtypes do not fit, or k is a negative int.
    """
    _check_arguments(scores, kept_mask, token_ids, k)
    flat_scores, flat_mask, flat_ids = scores.detach().reshape(-1), kept_mask.reshape(-1), token_ids.reshape(-1)
    # Filled on the device, because a copy from the host would wait for it.
    wanted = k.reshape(()) if isinstance(k, Tensor) else flat_ids.new_full((), k)
    if runs_on(flat_scores):
        from megacov.selection.kernels.radix import select_top_k  # with Triton, which not every machine has

        selected = select_top_k(flat_scores, flat_mask, flat_ids, wanted, digits=_DIGITS, group=group)
    elif scores.device.type == "cpu":
        shortlist = _shortlist(flat_scores, flat_mask, int(wanted))
        chosen = _select(
            flat_scores.index_select(0, shortlist), None, flat_ids.index_select(0, shortlist), wanted, group
        )
        selected = torch.zeros_like(flat_mask)
        selected[_take(shortlist, chosen)] = True
    else:
        selected = _select(flat_scores, flat_mask, flat_ids, wanted, group)
    return selected.view(kept_mask.shape)


def _select(
    scores: Tensor, candidates: Tensor | None, token_ids: Tensor, k: Tensor, group: ProcessGroup | None
) -> Tensor:
    """global_top_k on flat tensors [t]. candidates: [t] bool; None for all tokens, which are then dropped early."""
    keys, num_bits = sort_keys(scores)
    threshold, num_tied, num_equal = kth_largest_key(keys, candidates, k, num_bits, group)
    above, tied = keys > threshold, keys == threshold
    if candidates is None and int(num_tied) == int(num_equal):
        return above | tied
    # The complement reverses the order of ids without overflow, so that the smallest id has the largest key.
    tie_keys = ~token_ids
    if candidates is None:
        tie_threshold, num_last, _ = kth_largest_key(_take(tie_keys, tied), None, num_tied, 64, group)
    else:
        above, tied = above & candidates, tied & candidates
        tie_threshold, num_last, _ = kth_largest_key(tie_keys, tied, num_tied, 64, group)
    # num_last is 0 only if no token is to be chosen; the thresholds are meaningless then.
    return above | (tied & (tie_keys >= tie_threshold) & (num_last > 0))


def kth_largest_key(
    keys: Tensor, candidates: Tensor | None, k: Tensor, num_bits: int, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The min(k, N)-th largest key of N candidates in the group, and how many of the k largest, and of all N, equal it.

    keys: [t] int64, signed numbers of num_bits. All results are int64 scalars, equal on all ranks; if min(k, N) is 0,
    the first is the largest possible key and the second 0.
    """
    # Unsigned numbers, held in int64, whose arithmetic wraps.
    offset = 1 << (num_bits - 1) if num_bits < 64 else -(1 << 63)
    keys = keys + offset
    threshold = torch.zeros_like(k)
    for shift, width in _DIGITS[num_bits]:
        digits = (keys >> shift) & ((1 << width) - 1)
        counts = all_reduce_sum(_histogram(digits, candidates, 1 << width), group=group)
        digit, k = _find_digit(counts, k)
        threshold = threshold + (digit << shift)
        matches = digits == digit
        if candidates is None:
            keys = _take(keys, matches)
        else:
            candidates = candidates & matches
    num_equal = counts.index_select(0, digit.reshape(1)).reshape(())  # an index would wait for a GPU
    return threshold - offset, k, num_equal


def _histogram(digits: Tensor, candidates: Tensor | None, num_bins: int) -> Tensor:
    """[num_bins] int64: number of candidates with each digit."""
    if candidates is None:
        return torch.bincount(digits, minlength=num_bins)
    # bincount would wait for a GPU. Tokens that are no candidates go into an extra bin, which is dropped.
    counts = digits.new_zeros(num_bins + 1)
    counts.scatter_add_(0, digits.where(candidates, num_bins), torch.ones_like(digits))
    return counts[:num_bins]


def _find_digit(counts: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The digit of the k-th largest, and its rank among those with this digit: two int64 scalars."""
    num_from_top = counts.flip(0).cumsum(0)
    k = torch.minimum(k, num_from_top[-1])
    is_above = num_from_top < k
    num_above = num_from_top.where(is_above, 0).amax()
    return counts.shape[0] - 1 - is_above.sum(), k - num_above


def _shortlist(scores: Tensor, kept_mask: Tensor, k: int) -> Tensor:
    """Indices of masked tokens that include this rank's part of the global top k, if possible few more than k.

    If k masked tokens of this rank reach a bound, no token below the bound can be chosen. To find such a bound cheaply,
    tokens form at least 4 k groups, and the bound is one that the maxima of somewhat more than k groups reach.
    Masked-out tokens can spoil this, so a shortlist that turns out too short is discarded.
    """
    group_size = min(_MAX_GROUP_SIZE, scores.shape[0] // (4 * max(k, 1)))
    if scores.shape[0] < _SHORTLIST_FROM or group_size < 4:
        return kept_mask.nonzero().squeeze(1)
    num_groups = scores.shape[0] // group_size
    num_grouped = num_groups * group_size
    # Group g holds tokens g, g + num_groups, ...: a maximum over rows is much faster than one over short columns.
    maxima = scores[:num_grouped].view(group_size, num_groups).amax(0)
    without_nan = maxima.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    bound = without_nan.kthvalue(num_groups - k - k // 4).values
    # A NaN maximum may hide any other value; this comparison keeps its group.
    groups = (~(maxima < bound)).nonzero().squeeze(1)
    members = groups + num_groups * torch.arange(group_size).unsqueeze(1)
    candidates = torch.cat([members.view(-1), torch.arange(num_grouped, scores.shape[0])])
    in_reach = (scores.index_select(0, candidates) >= bound) & kept_mask.index_select(0, candidates)
    shortlist = _take(candidates, in_reach)
    return shortlist if shortlist.shape[0] >= k else kept_mask.nonzero().squeeze(1)


def _take(values: Tensor, flags: Tensor) -> Tensor:
    """values[flags], but several times faster on a CPU."""
    return values.index_select(0, flags.nonzero().squeeze(1))


def _check_arguments(scores: Tensor, kept_mask: Tensor, token_ids: Tensor, k: int | Tensor) -> None:
    if kept_mask.dtype != torch.bool or kept_mask.shape != scores.shape:
        raise ValueError(f"kept_mask is {kept_mask.dtype} {tuple(kept_mask.shape)}, not bool {tuple(scores.shape)}")
    if token_ids.dtype != torch.int64 or token_ids.shape != scores.shape:
        raise ValueError(f"token_ids are {token_ids.dtype} {tuple(token_ids.shape)}, not int64 {tuple(scores.shape)}")
    if isinstance(k, int) and k < 0:
        raise ValueError(f"k is {k}, but must be at least 0")
