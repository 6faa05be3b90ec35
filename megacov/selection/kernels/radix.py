"""The radix select of global_top_k in kernels: all scores are read twice, those still in question a few times more.

Each digit takes two kernels. The first settles the digit found before: a candidate whose digit is larger is selected,
one whose digit is smaller is dropped, and one whose digit is equal is listed, so that the next digit reads the list
alone. It counts the next digits of those listed. The second kernel finds the digit of the k-th largest in the counts.
In between the counts are summed over the ranks. A last kernel settles the last digit. The order of a list differs from
run to run, but counts do not depend on it. Lists, counts, thresholds and k stay on the device, and the host waits for
nothing.

Keys are unsigned integers in the order of the scores, of 32 bits for floats up to that size and of 64 for all else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from megacov.parallel.collectives import all_reduce_sum
from megacov.selection.sort_keys import sort_keys

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

BLOCK = 4096
NUM_WARPS = 8
_MAX_BINS = 2048
# Enough programs to fill a GPU.
_PROGRAMS_OF_A_MULTIPROCESSOR = 4

# How a value becomes a key: floats of at most 32 bits, integers, and integers in reverse order.
FLOAT, INTEGER, REVERSED = (tl.constexpr(value) for value in range(3))


class _Order(NamedTuple):
    """Values [t] that tokens are ordered by, how they become keys, and (shift, width) of each digit from the top."""

    values: Tensor
    kind: int
    digits: tuple[tuple[int, int], ...]


def select_top_k(
    scores: Tensor,
    kept_mask: Tensor,
    token_ids: Tensor,
    k: Tensor,
    *,
    digits: dict[int, tuple[tuple[int, int], ...]],
    group: ProcessGroup | None,
) -> Tensor:
    """The same as global_top_k, on flat tensors of one device.

    Args:
        scores: [t] as in global_top_k, like the other arguments.
        kept_mask: [t] bool.
        token_ids: [t] int64.
        k: [] int64.
        digits: (shift, width) of each digit of a key of 32 and of 64 bits, from the top; widths of 10 or 11.
        group: as there.

    Returns:
        [t] bool.

    Collectives: those of global_top_k.
    Gradient: none.
    """
    scores, kept_mask, token_ids = scores.contiguous(), kept_mask.contiguous(), token_ids.contiguous()
    if scores.dtype in (torch.float64, torch.int64):
        by_score = _Order(sort_keys(scores)[0], INTEGER.value, digits[64])
    else:
        by_score = _Order(scores, FLOAT.value, digits[32])
    by_id = _Order(token_ids, REVERSED.value, digits[64])
    search = _Search(kept_mask, num_digits=len(by_score.digits) + len(by_id.digits), group=group)
    threshold = search.kth_largest(by_score, torch.stack([torch.zeros_like(k), k]))
    last = search.kth_largest(by_id, threshold, within=by_score)
    return search.with_last(by_id, last)


class _Search:
    """The memory of one search. kept_mask: [t] bool; group: ranks that hold the other tokens."""

    def __init__(self, kept_mask: Tensor, *, num_digits: int, group: ProcessGroup | None) -> None:
        self.kept_mask, self.group = kept_mask, group
        num_tokens = kept_mask.shape[0]
        self.counts = kept_mask.new_zeros((num_digits, _MAX_BINS), dtype=torch.int64)
        self.lengths = kept_mask.new_zeros(num_digits, dtype=torch.int64)
        # One list is read while the other is written.
        self.lists = kept_mask.new_empty((2, num_tokens), dtype=torch.int32)
        self.selected = torch.zeros_like(kept_mask)
        self.num_searched = 0
        self.grid = (max(1, min(triton.cdiv(num_tokens, BLOCK), _num_programs(kept_mask))),)

    def kth_largest(self, order: _Order, state: Tensor, *, within: _Order | None = None) -> Tensor:
        """Search the candidates for the k-th largest key, and settle all its digits but the last.

        state: [2] int64, k last. Without `within` all masked tokens are candidates; with it those whose key in that
        order is the first of `state`. Returns [2] int64: the key, and its rank among the candidates that have it.
        """
        is_first = True
        filtered, filter_shift = within, 0
        for shift, width in order.digits:
            counts = self._count(order, shift, width, filtered, filter_shift, state)
            found = torch.empty_like(state)
            with torch.cuda.device_of(state):
                find_digit[(1,)](
                    counts, state, found, WIDTH=width, IS_FIRST=is_first, NUM_BINS=1 << width, num_warps=NUM_WARPS
                )
            state, is_first = found, False
            filtered, filter_shift = order, shift
        return state

    def with_last(self, order: _Order, state: Tensor) -> Tensor:
        """Settle the last digit: all that is selected, with those of the last list whose key is at least `state`'s."""
        with torch.cuda.device_of(state):
            select_last[self.grid](
                order.values,
                self.lists[self.num_searched % 2],
                self.lengths[self.num_searched - 1 :],
                state,
                self.selected,
                KIND=order.kind,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
        return self.selected

    def _count(
        self, order: _Order, shift: int, width: int, filtered: _Order | None, filter_shift: int, state: Tensor
    ) -> Tensor:
        """Settle the digit found before, if any, and count the next one of the candidates of all ranks then left."""
        index, has_list = self.num_searched, self.num_searched >= 2
        self.num_searched += 1
        counts = self.counts[index, : 1 << width]
        with torch.cuda.device_of(counts):
            count_digits[self.grid](
                order.values,
                (filtered or order).values,
                self.kept_mask,
                self.lists[index % 2],
                self.lists[(index + 1) % 2],
                self.lengths[index - 1 :],
                self.lengths[index:],
                state,
                self.selected,
                counts,
                self.kept_mask.shape[0],
                KIND=order.kind,
                SHIFT=shift,
                FILTER_KIND=(filtered or order).kind,
                FILTER_SHIFT=filter_shift,
                HAS_FILTER=filtered is not None,
                HAS_LIST=has_list,
                NUM_BINS=1 << width,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
        return all_reduce_sum(counts, group=self.group)


def _num_programs(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return 3  # of the interpreter
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count * _PROGRAMS_OF_A_MULTIPROCESSOR


@triton.jit
def sort_key(values, KIND: tl.constexpr):
    if KIND == FLOAT:
        values = values.to(tl.float32)
        bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
        # IEEE floats are sign and magnitude; flipping the magnitude bits of negative numbers gives two's complement.
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        bits = tl.where(values != values, -0x80000000, bits)
        keys = (bits ^ -0x80000000).to(tl.uint32, bitcast=True)
    elif KIND == REVERSED:
        keys = (~values ^ -0x8000000000000000).to(tl.uint64, bitcast=True)
    else:
        keys = (values ^ -0x8000000000000000).to(tl.uint64, bitcast=True)
    return keys


@triton.jit
def count_digits(
    values,
    filter_values,
    kept_mask,
    read_list,
    written_list,
    read_length,
    written_length,
    state,
    selected,
    counts,
    num_tokens,
    KIND: tl.constexpr,
    SHIFT: tl.constexpr,
    FILTER_KIND: tl.constexpr,
    FILTER_SHIFT: tl.constexpr,
    HAS_FILTER: tl.constexpr,
    HAS_LIST: tl.constexpr,
    NUM_BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    length = num_tokens
    if HAS_LIST:
        length = tl.load(read_length).to(tl.int32)
    bins = tl.arange(0, NUM_BINS)
    for first in range(tl.program_id(0) * BLOCK, length, tl.num_programs(0) * BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        is_candidate = tokens < length
        if HAS_LIST:
            tokens = tl.load(read_list + tokens, mask=is_candidate, other=0)
        else:
            is_candidate = is_candidate & (tl.load(kept_mask + tokens, mask=is_candidate, other=0) != 0)
        if HAS_FILTER:
            filter_keys = sort_key(tl.load(filter_values + tokens, mask=is_candidate, other=0), FILTER_KIND)
            filter_keys = filter_keys >> FILTER_SHIFT
            wanted = tl.load(state).to(filter_keys.dtype)
            tl.store(selected + tokens, True, mask=is_candidate & (filter_keys > wanted))
            is_candidate = is_candidate & (filter_keys == wanted)
            place = tl.cumsum(is_candidate.to(tl.int32), 0)
            start = tl.atomic_add(written_length, tl.sum(is_candidate.to(tl.int64), 0)).to(tl.int32)
            tl.store(written_list + start + place - 1, tokens, mask=is_candidate)
        keys = sort_key(tl.load(values + tokens, mask=is_candidate, other=0), KIND)
        digits = ((keys >> SHIFT) & (NUM_BINS - 1)).to(tl.int32)
        # Kept in registers from block to block, these counts would leave too few for anything else.
        block_counts = tl.histogram(digits, NUM_BINS, mask=is_candidate)
        tl.atomic_add(counts + bins, block_counts.to(tl.int64), mask=block_counts > 0)


@triton.jit
def find_digit(counts, state, found, WIDTH: tl.constexpr, IS_FIRST: tl.constexpr, NUM_BINS: tl.constexpr):
    counts = tl.load(counts + tl.arange(0, NUM_BINS))
    num_from_top = tl.cumsum(counts, 0, reverse=True)
    k = tl.minimum(tl.load(state + 1), tl.sum(counts, 0))
    is_above = num_from_top < k
    digit = NUM_BINS - 1 - tl.sum(is_above.to(tl.int64), 0)
    num_above = tl.max(tl.where(is_above, num_from_top, 0), 0)
    if not IS_FIRST:
        digit = (tl.load(state) << WIDTH) | digit
    tl.store(found, digit)
    tl.store(found + 1, k - num_above)


@triton.jit
def select_last(values, read_list, read_length, state, selected, KIND: tl.constexpr, BLOCK: tl.constexpr):
    length = tl.load(read_length).to(tl.int32)
    # The key means nothing if no token is to be selected.
    has_last = tl.load(state + 1) > 0
    for first in range(tl.program_id(0) * BLOCK, length, tl.num_programs(0) * BLOCK):
        places = first + tl.arange(0, BLOCK)
        is_candidate = (places < length) & has_last
        tokens = tl.load(read_list + places, mask=is_candidate, other=0)
        keys = sort_key(tl.load(values + tokens, mask=is_candidate, other=0), KIND)
        tl.store(selected + tokens, True, mask=is_candidate & (keys >= tl.load(state).to(keys.dtype)))
