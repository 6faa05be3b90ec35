"""The plan of a model of 32 billion parameters is made from its config.json, in a process that stays small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
QWEN_32B, QWEN_30B_A3B = "yaml_configs/models/qwen2.5-32b", "benchmarks/models/qwen3-30b-a3b"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.conversion_plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_32b_model_is_planned_without_allocating_it():
    ended = run(QWEN_32B, "--tensor", "8", "--pipeline", "2")
    assert ended.returncode == 0, ended.stderr
    heading, *stages, last = ended.stdout.splitlines()
    assert heading.split()[:2] == ["stage", "tensor"] and [line.split()[0] for line in stages] == ["0", "0", "1", "1"]
    # 32.76 billion parameters over 16 ranks, two bytes each; norms are on all of them.
    assert all("3.82 GiB" in line for line in stages)
    grown = re.fullmatch(r"this process grew by (\d+) MiB", last)
    assert grown is not None and int(grown[1]) < 200


def test_experts_are_planned_on_the_ranks_that_share_them_out():
    ended = run(QWEN_30B_A3B, "--expert", "8")
    assert ended.returncode == 0, ended.stderr
    # 30.53 billion parameters, of which 28.99 billion are experts: an eighth of those and the rest.
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("0 ")]
    assert "5,164,972,032" in line


def test_a_layout_that_does_not_fit_is_refused_in_one_sentence():
    ended = run(QWEN_32B, "--tensor", "16")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "parallel.tensor is 16 and the model has 40 attention heads" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
