"""Ten million short prompts take little memory, and no more than the table holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "form"), [(20_000, "parquet"), (10_000_000, "jsonl")])
def test_memory_is_bounded(rows: int, form: str) -> None:
    command = [sys.executable, "-m", "benchmarks.prompt_memory", "--rows", str(rows), "--form", form]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    held, tokens = map(float, re.findall(r"([0-9.]+) (?:bytes a row in|of tokens)", result.stdout))
    # Text, answer and 28 bytes; a text has as many letters as tokens.
    assert held == pytest.approx(tokens + tokens / 4 + 1 + 28, abs=0.2)
