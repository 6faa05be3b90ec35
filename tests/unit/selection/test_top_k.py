"""The k largest on one rank equal a sort, on both the CPU path and the GPU path."""

import pytest
import torch
from hypothesis import given, settings

from megacov.selection import global_top_k, top_k
from megacov.selection.sort_keys import sort_keys
from tests.support.top_k_cases import TopKCase, top_k_cases


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(top_k_cases())
def test_equals_a_sort(case: TopKCase):
    scores, kept_mask, token_ids = case.tensors()
    selected = global_top_k(scores, kept_mask, token_ids, k=case.k, group=None)
    assert set(token_ids[selected].tolist()) == case.expected_ids()
    assert int(selected.sum()) == min(case.k, int(kept_mask.sum()))
    as_tensor = global_top_k(scores, kept_mask, token_ids, k=torch.tensor(case.k), group=None)
    assert torch.equal(as_tensor, selected)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(top_k_cases())
def test_keeping_all_tokens_to_the_end_as_on_a_gpu_selects_the_same(case: TopKCase):
    scores, kept_mask, token_ids = case.tensors()
    selected = top_k._select(scores, kept_mask, token_ids, torch.tensor(case.k), None)
    assert set(token_ids[selected].tolist()) == case.expected_ids()


def test_nothing_is_read_back_from_a_device():
    """Meta tensors have no values, so code that reads one on the host, and would wait for a GPU, raises."""
    scores = torch.empty(50, device="meta")
    kept_mask = torch.empty(50, dtype=torch.bool, device="meta")
    token_ids = torch.empty(50, dtype=torch.int64, device="meta")
    for k in (3, torch.empty((), dtype=torch.int64, device="meta")):
        assert global_top_k(scores, kept_mask, token_ids, k=k, group=None).shape == (50,)


@pytest.mark.parametrize("share", [1e-4, 1e-2, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["normal", "few values", "one value", "sorted", "mostly nan", "best are masked out"])
def test_the_shortlist_of_many_tokens_drops_none_of_the_best(share, kind):
    num_tokens = 5 * top_k._SHORTLIST_FROM + 11
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(num_tokens, generator=generator)
    if kind == "few values":
        scores = (scores * 2).round()
    elif kind == "one value":
        scores = torch.full_like(scores, 0.25)
    elif kind == "sorted":
        scores = scores.sort(descending=True).values
    elif kind == "mostly nan":
        scores[scores < 2] = float("nan")
    kept_mask = torch.rand(num_tokens, generator=generator) < 0.9
    if kind == "best are masked out":
        kept_mask &= scores < 0
    token_ids = torch.randperm(num_tokens, generator=generator)
    k = int(share * num_tokens)

    selected = global_top_k(scores, kept_mask, token_ids, k=k, group=None)
    best_first = torch.argsort(token_ids)
    best_first = best_first[torch.argsort(sort_keys(scores)[0][best_first], descending=True, stable=True)]
    best_first = best_first[kept_mask[best_first]][:k]
    assert torch.equal(selected.nonzero().squeeze(1), best_first.sort().values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_the_shortlist_works_for_every_dtype_and_stride(dtype):
    scores = (torch.randn(4 * top_k._SHORTLIST_FROM, generator=torch.Generator().manual_seed(0)) * 1e3).to(dtype)[::2]
    kept_mask = torch.ones_like(scores, dtype=torch.bool)
    selected = global_top_k(scores, kept_mask, torch.arange(len(scores)), k=700, group=None)
    assert torch.equal(scores[selected].sort().values, scores.sort().values[-700:])


def test_the_shortlist_is_short():
    scores = torch.randn(8 * top_k._SHORTLIST_FROM, generator=torch.Generator().manual_seed(0))
    shortlist = top_k._shortlist(scores, torch.ones_like(scores, dtype=torch.bool), 1000)
    assert 1000 <= len(shortlist) < 1600


def test_any_shape_and_untouched_inputs():
    scores = torch.tensor([[3.0, -0.0], [0.0, 2.0]], requires_grad=True)
    kept_mask = torch.tensor([[True, True], [True, False]])
    token_ids = torch.tensor([[5, 9], [7, 1]])
    selected = global_top_k(scores, kept_mask, token_ids, k=2, group=None)
    assert selected.tolist() == [[True, False], [True, False]]
    assert scores.tolist() == [[3.0, -0.0], [0.0, 2.0]]
    assert kept_mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_sort_keys_have_the_order_of_the_scores(dtype):
    numbers = [float("-inf"), -3.0, -1.0, -1e-7, 0.0, 1e-7, 1.0, 2.5, float("inf")]
    if dtype == torch.int64:
        numbers = [-(2**63), -(2**63) + 1, -5, -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1]
    tensor, num_bits = sort_keys(torch.tensor(numbers, dtype=dtype))
    keys = tensor.tolist()
    assert keys == sorted(set(keys))
    assert -(2 ** (num_bits - 1)) <= keys[0]
    assert keys[-1] < 2 ** (num_bits - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zeros_share_a_key_and_nan_is_below_everything(dtype):
    scores = torch.tensor([-0.0, 0.0, float("nan"), float("-nan"), float("-inf")], dtype=dtype)
    negative_zero, zero, nan, negative_nan, minus_infinity = sort_keys(scores)[0].tolist()
    assert negative_zero == zero
    assert nan == negative_nan < minus_infinity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept_mask": torch.ones(3)}, "kept_mask"),
        ({"kept_mask": torch.ones(2, dtype=torch.bool)}, "kept_mask"),
        ({"token_ids": torch.arange(3, dtype=torch.int32)}, "token_ids"),
        ({"k": -1}, "k is -1"),
        ({"scores": torch.ones(3, dtype=torch.int32)}, "scores"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {
        "scores": torch.ones(3),
        "kept_mask": torch.ones(3, dtype=torch.bool),
        "token_ids": torch.arange(3),
        "k": 1,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        global_top_k(**arguments, group=None)
