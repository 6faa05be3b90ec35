"""Whatever text comes from outside, megacov reads it or refuses it in one sentence, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz.parsers import PARSERS
from tests.support.fuzz.running import cases_of, fuzz

ROOT = Path(__file__).parents[2]
CASES = 1000


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_text_with_mistakes_is_read_or_refused(parser, tmp_path):
    outcome = fuzz(parser, tmp_path, cases=cases_of(parser, CASES))
    print(f"{outcome.cases} cases, the slowest of {1e3 * outcome.slowest_s:.1f} ms: {outcome.slowest[:200]!r}")
    assert outcome.refused < outcome.cases, "not even a valid file is read"
    assert outcome.refused > 0 or not parser.refuses, "no mistake is found"


@pytest.mark.slow  # 20,000 cases, which reach nine in ten branches of every reader
def test_cases_reach_the_branches_of_every_reader():
    environment = os.environ | {"CI": "true"}  # the same cases every time
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--cases", "20000"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=1800,
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
    assert "slowest case: " in ended.stdout
