"""Every epoch has each prompt once, in an order that depends on the seed and the epoch; a position resumes it."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacov.data import PromptStream
from megacov.types import Prompt


def make_prompts(count: int) -> list[Prompt]:
    return [Prompt(index=index, text=str(index), token_ids=(index,), answer="") for index in range(count)]


def indices(prompts: Sequence[Prompt]) -> list[int]:
    return [prompt.index for prompt in prompts]


@given(count=st.integers(1, 40), num_epochs=st.integers(1, 4), seed=st.integers())
def test_every_epoch_holds_every_prompt_once(count: int, num_epochs: int, seed: int) -> None:
    taken = indices(PromptStream(make_prompts(count), seed=seed).take(count * num_epochs))
    for epoch in range(num_epochs):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(
    count=st.integers(1, 20),
    sizes=st.lists(st.integers(0, 30), max_size=6),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_a_stream_continues_from_any_position(count: int, sizes: list[int], seed: int, shuffle: bool) -> None:
    prompts = make_prompts(count)
    whole = PromptStream(prompts, seed=seed, shuffle=shuffle).take(sum(sizes))
    position, pieces = 0, []
    for size in sizes:
        stream = PromptStream(prompts, seed=seed, shuffle=shuffle, position=position)
        pieces += stream.take(size)
        position = stream.position
    assert pieces == whole
    assert position == sum(sizes)


def test_orders_differ_between_epochs_and_seeds() -> None:
    prompts = make_prompts(100)
    stream = PromptStream(prompts, seed=0)
    assert stream.epoch == 0
    first, second = indices(stream.take(100)), indices(stream.take(100))
    assert stream.epoch == 2
    other = indices(PromptStream(prompts, seed=1).take(100))
    in_order = list(range(100))
    assert len({tuple(order) for order in (first, second, other, in_order)}) == 4


def test_the_order_is_the_same_for_ever() -> None:
    """The order is fixed here because a run resumed under a newer megacov or Python must keep it."""
    stream = PromptStream(make_prompts(8), seed=0)
    assert indices(stream.take(8)) == [0, 3, 7, 4, 1, 5, 2, 6]
    assert indices(stream.take(8)) == [6, 3, 1, 2, 0, 4, 5, 7]


def test_without_shuffle_every_epoch_is_in_order() -> None:
    stream = PromptStream(make_prompts(3), seed=0, shuffle=False)
    assert indices(stream.take(7)) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 700, 20_011])
def test_the_order_is_that_of_pythons_random_numbers(count: int) -> None:
    stream = PromptStream(make_prompts(count), seed=3)
    for epoch in range(2):
        generator = random.Random(f"3/{epoch}")
        assert indices(stream.take(count)) == sorted(range(count), key=lambda _: generator.random())


def test_an_order_takes_four_bytes_a_prompt() -> None:
    count = 100_000
    stream = PromptStream([Prompt(0, "", (), "")] * count, seed=0)
    tracemalloc.start()
    try:
        stream.take(1)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5 * count
    assert peak < 25 * count


def make_sources(*counts: int) -> list[list[Prompt]]:
    return [
        [Prompt(index=index, text="", token_ids=(), answer="", source=source) for index in range(count)]
        for source, count in enumerate(counts)
    ]


@settings(deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    weights=st.lists(st.sampled_from([0.2, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
    position=st.integers(0, 120),
    shuffle=st.booleans(),
)
def test_a_mixture_continues_from_any_position_and_each_source_has_its_own_epochs(
    counts: list[int], weights: list[float], position: int, shuffle: bool
) -> None:
    sources, weights = make_sources(*counts), weights[: len(counts)]
    whole = PromptStream(*sources, seed=1, shuffle=shuffle, weights=weights).take(150)
    rest = PromptStream(*sources, seed=1, shuffle=shuffle, weights=weights, position=position)
    assert rest.take(150 - position) == whole[position:]
    assert rest.moved_to(position).take(5) == (whole + rest.take(5))[position : position + 5]
    for source, count in enumerate(counts):
        taken = [prompt.index for prompt in whole if prompt.source == source]
        for start in range(0, len(taken) - count + 1, count):
            epoch = taken[start : start + count]
            assert (sorted(epoch) if shuffle else epoch) == list(range(count))


def test_sources_of_equal_size_have_different_orders_that_stay_for_ever() -> None:
    taken = PromptStream(*make_sources(6, 6), seed=0, weights=[2.0, 1.0]).take(12)
    assert [prompt.source for prompt in taken] == [0, 1, 0] * 4
    assert [prompt.index for prompt in taken if prompt.source == 0] == [5, 2, 1, 0, 3, 4, 3, 0]
    assert [prompt.index for prompt in taken if prompt.source == 1] == [0, 2, 4, 1]


def test_a_far_position_of_a_mixture_is_found_at_once() -> None:
    stream = PromptStream(*make_sources(10, 7), seed=0, weights=[0.6, 0.4], position=10**12)
    assert stream.epoch == 6 * 10**11 // 10
    assert [prompt.source for prompt in stream.take(5)].count(0) == 3
