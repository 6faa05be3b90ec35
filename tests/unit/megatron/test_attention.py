"""Core attention on one rank equals softmax with an explicit mask, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megacov.megatron.attention import (
    SdpaCoreAttention,
    causal_attention,
    packed_causal_attention,
    zigzag_causal_attention,
)
from megacov.parallel.zigzag import packed_zigzag_positions, zigzag_positions
from tests.support import reference

HEADS, HEAD_DIM, SCALE = 4, 8, 8**-0.5
# In float64 only the order of sums differs; bfloat16 rounds softmax weights to 8 bits.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 5e-2}
GROUPS = [4, 2, 1]


def make_attention(cp_size: int = 1, **kwargs: object) -> SdpaCoreAttention:
    config = TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=HEADS, attention_dropout=0.0, context_parallel_size=cp_size
    )
    arguments = {"layer_number": 1, "attn_mask_type": AttnMaskType.causal, "attention_type": "self", **kwargs}
    return SdpaCoreAttention(config, **arguments)


def make_inputs(*shape: int, groups: int, dtype: torch.dtype) -> list[Tensor]:
    """Query [*shape, n, d], key and value [*shape, g, d]."""
    return [torch.randn(*shape, heads, HEAD_DIM).to(dtype).requires_grad_() for heads in (HEADS, groups, groups)]


def sequence_ids(cu_seqlens: list[int]) -> Tensor:
    lengths = torch.tensor(cu_seqlens).diff()
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def packed_params(cu_seqlens: list[int], padded: list[int] | None = None) -> PackedSeqParams:
    boundaries = torch.tensor(cu_seqlens, dtype=torch.int32)
    padded_boundaries = None if padded is None else torch.tensor(padded, dtype=torch.int32)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        cu_seqlens_q_padded=padded_boundaries,
        cu_seqlens_kv_padded=padded_boundaries,
    )


def assert_equal_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare two results of the same leaves, `inputs`, in value and in the gradient of one random projection."""
    tolerance = TOLERANCE[inputs[0].dtype]
    weights = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((found.double() * weights).sum(), inputs)
    references = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for gradient, wanted in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=4 * tolerance)


def padded_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    one_sequence = torch.zeros(query.shape[0])
    rows = [
        reference.causal_attention(query[:, b], key[:, b], value[:, b], one_sequence, scale=SCALE)
        for b in range(query.shape[1])
    ]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_padded_equals_the_reference(dtype, groups):
    inputs = make_inputs(7, 2, groups=groups, dtype=dtype)
    found = make_attention()(*inputs, None, attn_mask_type=None, attention_bias=None, packed_seq_params=None)
    assert found.shape == (7, 2, HEADS * HEAD_DIM)
    assert found.dtype == dtype
    assert_equal_with_gradients(found, padded_reference(*inputs).flatten(2), inputs)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("cu_seqlens", [[0, 1, 6, 6, 9, 10], [0, 4, 8, 12], [0, 5]], ids=str)
def test_packed_equals_the_reference(dtype, groups, cu_seqlens):
    inputs = make_inputs(cu_seqlens[-1], groups=groups, dtype=dtype)
    found = make_attention()(*inputs, None, packed_seq_params=packed_params(cu_seqlens))
    assert found.shape == (cu_seqlens[-1], HEADS * HEAD_DIM)
    expected = reference.causal_attention(*inputs, sequence_ids(cu_seqlens), scale=SCALE)
    assert_equal_with_gradients(found, expected.flatten(1), inputs)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("num_queries", [1, 3, 6])
def test_late_queries_see_all_earlier_keys(groups, num_queries):
    query, key, value = inputs = make_inputs(6, 2, groups=groups, dtype=torch.float64)
    found = causal_attention(query[-num_queries:], key, value, scale=None, dropout=0.0)
    assert_equal_with_gradients(found, padded_reference(*inputs)[-num_queries:], inputs)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("cp_size", [1, 2, 4])
def test_shards_of_all_ranks_make_the_whole(cp_size, groups):
    length = 3 * 2 * cp_size
    query, key, value = inputs = make_inputs(length, 2, groups=groups, dtype=torch.float64)
    shards = [zigzag_positions(length, cp_rank=rank, cp_size=cp_size) for rank in range(cp_size)]
    keys, values = (torch.stack([x[positions] for positions in shards]) for x in (key, value))
    parts = [
        zigzag_causal_attention(query[positions], keys, values, cp_rank=rank, scale=None, dropout=0.0)
        for rank, positions in enumerate(shards)
    ]
    expected = padded_reference(*inputs)[torch.cat(shards)]
    assert_equal_with_gradients(torch.cat(parts), expected, inputs)


@pytest.mark.parametrize("cp_size", [2, 4])
def test_packed_shards_of_all_ranks_make_the_whole(cp_size):
    cu_seqlens = [2 * cp_size * chunks for chunks in (0, 1, 4, 4, 6)]
    query, key, value = inputs = make_inputs(cu_seqlens[-1], groups=2, dtype=torch.float64)
    shards = [packed_zigzag_positions(cu_seqlens, cp_rank=rank, cp_size=cp_size) for rank in range(cp_size)]
    keys, values = (torch.stack([x[positions] for positions in shards]) for x in (key, value))
    lengths = [2 * chunks for chunks in (1, 3, 0, 2)]
    parts = [
        packed_causal_attention(query[positions], keys, values, lengths, cp_rank=rank, scale=None, dropout=0.0)
        for rank, positions in enumerate(shards)
    ]
    expected = reference.causal_attention(*inputs, sequence_ids(cu_seqlens), scale=SCALE)[torch.cat(shards)]
    assert_equal_with_gradients(torch.cat(parts), expected, inputs)


@pytest.mark.parametrize("cu_seqlens", [[0, 3, 7], [0]], ids=str)
def test_tokens_after_the_last_sequence_are_zero_and_touch_nothing(cu_seqlens):
    end = cu_seqlens[-1]
    inputs = make_inputs(end + 4, groups=2, dtype=torch.float64)
    with torch.no_grad():
        for x in inputs:
            x[end:] = torch.nan
    found = make_attention()(*inputs, None, packed_seq_params=packed_params(cu_seqlens))
    real = [x.detach()[:end].requires_grad_() for x in inputs]
    expected = reference.causal_attention(*real, sequence_ids(cu_seqlens), scale=SCALE).flatten(1)
    torch.testing.assert_close(found[:end], expected, rtol=1e-13, atol=1e-13)
    assert not found[end:].any()
    if end > 0:
        for gradient in torch.autograd.grad(found.sum(), inputs):
            assert gradient.isfinite().all()
            assert not gradient[end:].any()
            assert gradient[:end].any()


def test_padded_boundaries_are_the_ones_that_count():
    inputs = make_inputs(12, groups=2, dtype=torch.float64)
    real, padded = [0, 3, 8], [0, 4, 12]
    found = make_attention()(*inputs, None, packed_seq_params=packed_params(real, padded))
    expected = reference.causal_attention(*inputs, sequence_ids(padded), scale=SCALE).flatten(1)
    assert_equal_with_gradients(found, expected, inputs)


def test_padding_at_the_end_of_a_sequence_touches_no_real_token():
    query, key, value = make_inputs(12, groups=2, dtype=torch.float64)
    is_real = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]).bool()
    found = make_attention()(query, key, value, None, packed_seq_params=packed_params([0, 3, 8], [0, 4, 12]))
    gradients = torch.autograd.grad(found[is_real].sum(), (query, key, value))
    assert not any(gradient[~is_real].any() for gradient in gradients)


@pytest.mark.parametrize("packed", [None, packed_params([0, 3, 8])], ids=["padded", "packed"])
def test_inputs_are_not_written_to(packed):
    shape = (8, 2) if packed is None else (8,)
    inputs = make_inputs(*shape, groups=2, dtype=torch.float32)
    before = [x.detach().clone() for x in inputs]
    make_attention()(*inputs, None, packed_seq_params=packed).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("packed", [None, packed_params([0, 3, 8])], ids=["padded", "packed"])
def test_weights_are_dropped_in_training_only(packed):
    shape = (8, 2) if packed is None else (8,)
    inputs = make_inputs(*shape, groups=2, dtype=torch.float32)
    plain = make_attention()(*inputs, None, packed_seq_params=packed)
    dropping = make_attention(attention_dropout=0.5)
    assert torch.equal(dropping.eval()(*inputs, None, packed_seq_params=packed), plain)
    assert not torch.equal(dropping.train()(*inputs, None, packed_seq_params=packed), plain)


def test_the_scale_can_be_given():
    query, key, value = make_inputs(5, 1, groups=4, dtype=torch.float64)
    found = make_attention(softmax_scale=2 * SCALE)(query, key, value)
    torch.testing.assert_close(found, make_attention()(2 * query, key, value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["pg_collection", "model_comm_pgs"])
def test_the_constructor_takes_what_megatron_hands_it(name):
    attention = make_attention(softmax_scale=None, cp_comm_type="p2p", **{name: ProcessGroupCollection()})
    assert attention.cp_group is None
    assert list(attention.parameters()) == []


def test_what_it_cannot_do_is_refused():
    inputs = make_inputs(4, 1, groups=4, dtype=torch.float32)
    with pytest.raises(AssertionError, match="context_parallel_size is 2, the group has 1 ranks"):
        make_attention(cp_size=2)
    with pytest.raises(AssertionError):
        make_attention(attn_mask_type=AttnMaskType.padding)
    with pytest.raises(AssertionError, match="adds no bias"):
        make_attention()(*inputs, None, attention_bias=torch.zeros(4, 4))
    with pytest.raises(AssertionError, match="4 tokens on this rank, but its sequences have 5"):
        make_attention()(*(x[:, 0] for x in inputs), None, packed_seq_params=packed_params([0, 5]))


@pytest.mark.gpu
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_late_queries_on_a_gpu(dtype, groups):
    query, key, value = make_inputs(64, 2, groups=groups, dtype=dtype)
    found = causal_attention(query[-24:].cuda(), key.cuda(), value.cuda(), scale=None, dropout=0.0)
    assert_equal_with_gradients(found.cpu(), padded_reference(query, key, value)[-24:], [query, key, value])
