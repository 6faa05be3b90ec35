"""Positions of context-parallel ranks: equal to hand-written ones, a partition of the sequence, undone by merging."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacov.parallel.zigzag import merge_zigzag, packed_zigzag_positions, sequence_lengths, zigzag_positions

CP_SIZES = st.sampled_from([2, 3, 4, 8])


def test_positions_by_hand():
    assert [zigzag_positions(8, cp_rank=r, cp_size=2).tolist() for r in (0, 1)] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert zigzag_positions(8, cp_rank=1, cp_size=4).tolist() == [1, 6]
    assert packed_zigzag_positions([0, 4, 4, 12], cp_rank=0, cp_size=2).tolist() == [0, 3, 4, 5, 10, 11]
    assert packed_zigzag_positions([0, 4, 4, 12], cp_rank=1, cp_size=2).tolist() == [1, 2, 6, 7, 8, 9]


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_one_rank_holds_a_sequence_of_any_length_as_it_is(length):
    positions = zigzag_positions(length, cp_rank=0, cp_size=1)
    assert positions.tolist() == list(range(length))
    assert positions.dtype == torch.int64
    packed = packed_zigzag_positions([0, 3, 3 + length], cp_rank=0, cp_size=1)
    assert packed.tolist() == list(range(3 + length))


@pytest.mark.parametrize("cp_size", [1, 2])
def test_no_sequence_has_no_position(cp_size):
    positions = packed_zigzag_positions([0], cp_rank=0, cp_size=cp_size)
    assert positions.shape == (0,)
    assert positions.dtype == torch.int64
    assert sequence_lengths([0], cp_size=cp_size) == []


@given(cp_size=CP_SIZES, chunks=st.integers(0, 5))
def test_ranks_share_a_sequence_evenly_and_merging_restores_it(cp_size, chunks):
    length = 2 * cp_size * chunks
    shards = torch.stack([zigzag_positions(length, cp_rank=r, cp_size=cp_size) for r in range(cp_size)])
    assert shards.shape == (cp_size, length // cp_size)
    assert shards.dtype == torch.int64
    assert torch.equal(merge_zigzag(shards), torch.arange(length))
    # The order exists so that every rank has the same number of (query, key) pairs.
    assert len({int((shard + 1).sum()) for shard in shards}) == 1


@given(cp_size=CP_SIZES, chunks=st.lists(st.integers(0, 3), max_size=5))
def test_packed_positions_are_those_of_each_sequence(cp_size, chunks):
    cu_seqlens = [0]
    for count in chunks:
        cu_seqlens.append(cu_seqlens[-1] + 2 * cp_size * count)
    local = sequence_lengths(cu_seqlens, cp_size=cp_size)
    by_rank = [packed_zigzag_positions(cu_seqlens, cp_rank=r, cp_size=cp_size) for r in range(cp_size)]
    assert sorted(torch.cat(by_rank).tolist()) == list(range(cu_seqlens[-1]))
    for rank, positions in enumerate(by_rank):
        for index, part in enumerate(positions.split(local)):
            start, length = cu_seqlens[index], sequence_lengths(cu_seqlens)[index]
            assert torch.equal(part - start, zigzag_positions(length, cp_rank=rank, cp_size=cp_size))


def test_merging_keeps_other_dimensions_and_carries_gradients():
    shards = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    whole = merge_zigzag(shards)
    assert whole.shape == (8, 3)
    weights = torch.randn_like(whole)
    (whole * weights).sum().backward()
    for rank in range(2):
        positions = zigzag_positions(8, cp_rank=rank, cp_size=2)
        assert torch.equal(whole[positions], shards[rank])
        assert torch.equal(weights[positions], shards.grad[rank])


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(AssertionError, match="6 positions cannot be cut into 4 equal chunks.*multiple of 4"):
        zigzag_positions(6, cp_rank=0, cp_size=2)
    with pytest.raises(AssertionError, match="6 positions cannot be cut"):
        packed_zigzag_positions([0, 4, 10], cp_rank=0, cp_size=2)
    with pytest.raises(AssertionError, match="6 positions cannot be cut"):
        merge_zigzag(torch.zeros(2, 3))
    with pytest.raises(AssertionError, match="rank 2 of 2"):
        zigzag_positions(8, cp_rank=2, cp_size=2)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"), [([], "start with 0"), ([1, 4], "start with 0"), ([0, 4, 2], "desc")]
)
def test_what_are_no_boundaries_is_refused(cu_seqlens, message):
    with pytest.raises(AssertionError, match=message):
        sequence_lengths(cu_seqlens)
