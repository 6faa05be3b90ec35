"""Which samples a report holds, and sums over their tokens."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.monitor.overlays import OVERLAYS, fixed_scale
from megacov.monitor.report.samples import choose_steps, gather_samples, most_entropy_lost, most_selected
from megacov.monitor.report.samples_section import samples_data
from megacov.monitor.samples import read_samples
from tests.support.shown_runs import sample, write_samples


@given(st.dictionaries(st.integers(1, 999), st.integers(0, 50), max_size=30), st.integers(1, 400))
def test_chosen_steps_have_room_and_reach_from_the_first_to_the_last(sizes, room):
    tokens_by_step = dict(sorted(sizes.items()))
    chosen = choose_steps(tokens_by_step, max_tokens=room)
    assert list(chosen) == sorted(set(chosen))
    assert (len(chosen) <= 1) or (chosen[0] == min(sizes) and sum(sizes[step] for step in chosen) <= room)
    assert not sizes or chosen[-1] == max(sizes)
    if sum(sizes.values()) <= room:
        assert list(chosen) == list(tokens_by_step)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "samples").mkdir()
    rng = random.Random(1)
    for step in range(1, 11):
        write_samples(tmp_path, step, [sample(rng, row, 30) for row in range(4)])
    return tmp_path


def test_sums_over_tokens_are_those_of_all_responses(run):
    found = gather_samples(run, max_tokens=250)
    every = [each.tokens for each in read_samples(run)]
    tokens, selected, covariance = Counter(), Counter(), Counter()
    for values in every:
        tokens.update(values.texts)
        selected.update(text for text, is_selected in zip(values.texts, values.selected, strict=True) if is_selected)
        for text, value in zip(values.texts, values.covariance, strict=True):
            covariance[text] += 0 if value != value else value
    assert {text: sums.tokens for text, sums in found.by_text.items()} == tokens
    first = most_selected(found.by_text, most=3)
    assert [sums.selected for _, sums in first] == [amount for _, amount in selected.most_common(3)]
    (text, sums), *_ = most_entropy_lost(found.by_text, most=3)
    assert sums.covariance == pytest.approx(max(covariance.values()))
    assert covariance[text] == pytest.approx(sums.covariance)
    assert found.num_tokens == 10 * 4 * 30
    assert {each.step for each in found.shown} == {1, 10}


def test_a_step_that_is_too_large_is_cut_short_and_never_empty(run):
    assert [(each.step, each.sample) for each in gather_samples(run, max_tokens=70).shown] == [(10, 0), (10, 1)]
    assert len(gather_samples(run, max_tokens=1).shown) == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(run):
    path = run / "samples" / "step_000010.jsonl"
    path.write_text(path.read_text()[:-40])  # as while it is written
    (run / "samples" / "step_000011.jsonl").write_text('{"prompt": "a", "response": "b", "reward": 1}\n')
    found = gather_samples(run, max_tokens=10_000)
    assert len(found.shown) == found.num_samples == 10 * 4 - 1 + 1
    assert found.num_with_values == 39
    assert any("step_000010.jsonl, line 4" in problem for problem in found.problems)
    data = samples_data(found.shown)
    assert data["samples"][-1]["tokens"] is None
    assert data["samples"][-1]["response"] == "b"
    assert data["samples"][-1]["title"] == "Step 11, line 1"


def test_a_run_without_samples_has_none(tmp_path):
    found = gather_samples(tmp_path, max_tokens=10)
    assert (found.shown, found.num_samples, found.problems) == ((), 0, ())


def test_the_data_of_the_page_holds_what_the_files_hold(run):
    shown = tuple(read_samples(run, {3}))
    data = samples_data(shown)
    assert len(data["strings"]) == len(set(data["strings"]))
    for each, written in zip(shown, data["samples"], strict=True):
        assert [data["strings"][place] for place in written["tokens"]] == list(each.tokens.texts)
        for name, overlay in OVERLAYS.items():
            scale = fixed_scale(overlay)
            # Levels made of the page's numbers are those of the terminal's.
            assert scale.levels(written["values"][name]) == scale.levels(getattr(each.tokens, name).tolist())
    assert [each["name"] for each in data["overlays"]] == list(OVERLAYS)
