"""The quickstart runs from end to end: three algorithms on two ranks, the table and the picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.dist
def test_quickstart_trains_and_compares(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    command = [sys.executable, "-m", "examples.sum_pairs.quickstart", "--steps", "3", "--folder", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        "clip_cov_seed0",
        "compare.png",
        "grpo_seed0",
        "kl_cov_seed0",
    ]
    for algorithm in ("grpo", "clip_cov", "kl_cov"):
        assert f"{algorithm}_seed0  step 3/3" in result.stdout
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in result.stdout + result.stderr
