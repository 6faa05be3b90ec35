"""Conditions on samples: what passes, and how they are written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.errors import ConfigError
from megacov.monitor.sample_filter import SampleFilter, Span, parse_filter, parse_span
from megacov.monitor.samples import ShownSample, read_samples
from tests.support.sample_files import sample_line, write_step

WORDS = st.from_regex(r"[a-z]+( [a-z=]+)*", fullmatch=True)
SPANS = st.none() | st.builds(
    lambda low, width: Span(float(low), float(low + width)), st.integers(-(10**9), 10**9), st.integers(0, 99)
)
FILTERS = st.builds(
    SampleFilter,
    step=SPANS,
    reward=SPANS,
    tokens=SPANS,
    truncated=st.booleans(),
    failed=st.booleans(),
    source=st.from_regex(r"[a-z0-9=]*", fullmatch=True),
    text=st.just("") | WORDS,
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> ShownSample:
    run: Path = tmp_path_factory.mktemp("run")
    line = sample_line(
        reward=0.5,
        finish_reason="length",
        notable=["longest"],
        failure="timeout",
        source="gsm8k",
        prompt="Stra\u00dfe",
    )
    write_step(run, 7, line)
    return next(read_samples(run))


@given(kept=FILTERS)
def test_a_filter_is_read_as_it_is_written(kept):
    assert parse_filter(str(kept)) == kept


@pytest.mark.parametrize(
    "text",
    [
        *("", "step=7", "step=:7", "reward=0.5", "reward=0.25:0.5", "tokens=5:", "truncated", "failed"),
        *("source=gsm8k", "text=SEVEN is", "text=strasse", "step=7: reward=:1 tokens=5 truncated failed text=42"),
    ],
)
def test_a_sample_that_meets_all_conditions_passes(sample, text):
    assert parse_filter(text).passes(sample)


@pytest.mark.parametrize(
    "text", ["step=8:", "reward=:0.4", "tokens=6:", "source=gsm", "text=eight", "step=7 truncated text=seven  is"]
)
def test_one_condition_that_is_not_met_is_enough(sample, text):
    assert not parse_filter(text).passes(sample)


def test_an_older_file_has_the_failure_among_the_notable_things(tmp_path):
    write_step(tmp_path, 1, sample_line(notable=["verifier failure"]))
    assert parse_filter("failed").passes(next(read_samples(tmp_path)))


def test_the_end_and_the_failure_are_conditions(tmp_path):
    write_step(tmp_path, 1, sample_line())
    (plain,) = read_samples(tmp_path)
    assert not parse_filter("truncated").passes(plain)
    assert not parse_filter("failed").passes(plain)


@pytest.mark.parametrize("text", ["", ":", "0:1:2", "nan", "a:b", "1;2"])
def test_what_is_no_range_is_named(text):
    if text == ":":
        assert parse_span(text, "--reward") == Span()
        return
    with pytest.raises(ConfigError, match="--reward is .*: give a number, or a range such as 0:0.5"):
        parse_span(text, "--reward")


@pytest.mark.parametrize("text", ["reward", "truncated=1", "colour=red", "source=", "reward=2:1", "step=x"])
def test_what_is_no_condition_is_named(text):
    with pytest.raises(ConfigError, match=text.split("=")[0]):
        parse_filter(text)
