"""Whatever text comes from outside, megacov reads it or refuses it in one sentence, in bounded time and memory."""

from __future__ import annotations

import pytest

from tests.support.fuzz.parsers import PARSERS
from tests.support.fuzz.running import cases_of, fuzz

CASES = 1000


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_text_with_mistakes_is_read_or_refused(parser, tmp_path):
    outcome = fuzz(parser, tmp_path, cases=cases_of(parser, CASES))
    assert outcome.refused < outcome.cases, "not even a valid file is read"
    assert outcome.refused > 0 or not parser.refuses, "no mistake is found"
