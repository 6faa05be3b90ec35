"""The quickstart runs from end to end: three algorithms on two ranks, the table and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import run

QUICKSTART = ("-m", "examples.sum_pairs.quickstart")


@pytest.mark.dist
def test_quickstart_trains_and_compares(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    ended = run("--steps", "3", "--folder", str(folder), log=tmp_path / "log", module=QUICKSTART)
    assert ended.code == 0, ended.output
    assert ended.left == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "clip_cov_seed0",
        "compare.png",
        "grpo_seed0",
        "kl_cov_seed0",
    ]
    for algorithm in ("grpo", "clip_cov", "kl_cov"):
        assert f"{algorithm}_seed0  step 3/3" in ended.output
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in ended.output
