"""Log-probs and entropy beside Megatron's: the tables are printed, on a GPU where there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ops

ROOT = Path(__file__).parents[2]
SIZES = ["--tokens", "16", "--vocab", "300", "--rounds", "1", "--dtype", "bfloat16"]


def _printed(*options: str) -> str:
    command, environment = [sys.executable, "-m", "benchmarks.ops", *options], {**os.environ, "MEGACOV_PEERS": "none"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600, env=environment
    ).stdout


def test_without_a_gpu_it_names_the_reason(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(sys, "argv", ["ops", "--device", "cuda"])
    ops.main()
    assert capsys.readouterr().out == "skipped: torch sees no CUDA device\n"


@pytest.mark.slow
def test_on_a_cpu_every_contender_has_a_time():
    printed = _printed(*SIZES)
    for title, rows in (("forward, CPU", 7), ("forward and backward, CPU", 6)):
        table = printed.split(f"\n{title}")[1].split("\n\n")[0]
        assert len(re.findall(r"\d+\.\d+ ms", table)) == rows


@pytest.mark.gpu
@pytest.mark.parametrize("columns", ["19008", "152064"])
def test_on_a_gpu_the_kernels_are_near_the_copy_floor(columns):
    pytest.importorskip("triton")
    printed = _printed("--device", "cuda", "--tokens", "8192", "--dtype", "bfloat16", "--vocab", columns)
    for title, limit in (("forward,", 1.25), ("forward and backward,", 1.35)):
        table = printed.split(f"\n{title}")[1]
        floor_over_ours = float(re.search(r"floor .* ([\d.]+) x ours", table)[1])
        assert floor_over_ours * limit >= 1, printed
