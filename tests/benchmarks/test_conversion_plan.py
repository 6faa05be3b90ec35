"""The plan of a model of 32 billion parameters is made from its config.json, in a process that stays small."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command import Ended, run

QWEN_32B, QWEN_30B_A3B = "yaml_configs/models/qwen2.5-32b", "benchmarks/models/qwen3-30b-a3b"


def planned(folder: Path, *arguments: str, real: bool = False) -> Ended:
    return run(*arguments, log=folder / "log", module=("-m", "benchmarks.conversion_plan"), real=real)


def test_a_32b_model_is_planned_without_allocating_it(tmp_path: Path) -> None:
    # A process of its own, whose memory is what is measured.
    ended = planned(tmp_path, QWEN_32B, "--tensor", "8", "--pipeline", "2", real=True)
    assert ended.code == 0, ended.output
    heading, *stages, last = ended.output.splitlines()
    assert heading.split()[:2] == ["stage", "tensor"] and [line.split()[0] for line in stages] == ["0", "0", "1", "1"]
    # 32.76 billion parameters over 16 ranks, two bytes each; norms are on all of them.
    assert all("3.82 GiB" in line for line in stages)
    grown = re.fullmatch(r"this process grew by (\d+) MiB", last)
    assert grown is not None and int(grown[1]) < 200


def test_experts_are_planned_on_the_ranks_that_share_them_out(tmp_path: Path) -> None:
    ended = planned(tmp_path, QWEN_30B_A3B, "--expert", "8")
    assert ended.code == 0, ended.output
    # 30.53 billion parameters, of which 28.99 billion are experts: an eighth of those and the rest.
    (line,) = [line for line in ended.output.splitlines() if line.startswith("0 ")]
    assert "5,164,972,032" in line


def test_a_layout_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    ended = planned(tmp_path, QWEN_32B, "--tensor", "16")
    assert ended.code == 2
    assert "parallel.tensor is 16 and the model has 40 attention heads" in ended.output
    assert len(ended.output.strip().splitlines()) == 1
