"""`megacov sweep`: killed half-way and continued, with runs that fail, interrupted by Ctrl-C, and past its deadline."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from megacov.config import load_config
from tests.support.command import ROOT, Command, descendants, run, started, still_there, wait_for_line

pytestmark = pytest.mark.dist

BASE = ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml"
SETTINGS = {
    "run.steps": 2,
    "rollout.prompts_per_step": 4,
    "rollout.samples_per_prompt": 4,
    "batch.updates_per_rollout": 1,
    "checkpoint.every": 1,
}


def write_sweep(folder: Path, over: dict[str, list[object]], **more: object) -> Path:
    """A grid over settings of a run of two small steps."""
    settings = {**SETTINGS, **more.pop("settings", {})}  # type: ignore[dict-item]
    search = {"name": "grid", "over": over}
    sweep = {"name": "tried", "directory": str(folder / "sweep"), "base": str(BASE), "settings": settings}
    path = folder / "tried.yaml"
    path.write_text(json.dumps({**sweep, "search": search, **more}))
    return path


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of all files of some runs: a run that happens again has others."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def kill(process: Command) -> None:
    """Kill the sweep alone, as a crash does, and see that everything it started ends by itself."""
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(below) >= 2 and still_there(below, grace_s=30) == []


def test_a_sweep_that_is_killed_repeats_no_run_and_loses_none(tmp_path):
    path = write_sweep(tmp_path, {"optimizer.lr": [1e-4, 3e-4, 1e-3]})
    runs = tmp_path / "sweep" / "runs"
    with started("sweep", str(path), log=tmp_path / "log") as process:
        wait_for_line(tmp_path / "log", "lr_0.0001_seed0: done", process)
        wait_for_line(tmp_path / "sweep" / "logs" / "lr_0.0003_seed0.log", "step 1/2", process)
        kill(process)
    before = state_of(runs / "lr_0.0001_seed0")
    assert len(before) > 5
    ended = run("sweep", str(path), log=tmp_path / "log")
    assert ended.code == 0 and ended.left == [], ended.output
    assert state_of(runs / "lr_0.0001_seed0") == before
    assert [line.split()[1] for line in ended.output.splitlines() if line.endswith(": starts")] == [
        "lr_0.0003_seed0:",
        "lr_0.001_seed0:",
    ]
    rows = table_of(tmp_path)
    assert [(row["optimizer.lr"], row["state"], row["steps"]) for row in rows] == [
        ("0.0001", "done", "2"),
        ("0.0003", "done", "2"),
        ("0.001", "done", "2"),
    ]
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 10_000
    # The best setting is a configuration; and once all is over, nothing starts.
    best = load_config(tmp_path / "sweep" / "best.yaml")
    values = {float(row["optimizer.lr"]): float(row["value"]) for row in rows}
    assert values[best.optimizer.lr] == max(values.values()) and best.run.name == "tried_best"
    everything = state_of(runs)
    assert run("sweep", str(path), log=tmp_path / "log").code == 0
    assert state_of(runs) == everything


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    settings = {"run.steps": 1, "checkpoint.every": 0}
    verifiers = ["tests.support.verifiers:not_a_number", "sum_pairs"]
    path = write_sweep(tmp_path, {"rewards.verifier": verifiers}, settings=settings)
    ended = run("sweep", str(path), log=tmp_path / "log")
    assert ended.code == 14, ended.output
    (line,) = [line for line in ended.output.splitlines() if line.startswith("failed: ")]
    assert "verifier_tests.support.verifiers_not_a_number_seed0 (6)" in line
    assert "1 run of the sweep failed" in ended.output.splitlines()[-1]
    assert [(row["state"], row["exit_code"]) for row in table_of(tmp_path)] == [("failed", "6"), ("done", "0")]
    assert load_config(tmp_path / "sweep" / "best.yaml").rewards.verifier == "sum_pairs"


def test_ctrl_c_ends_all_runs_and_a_deadline_ends_one(tmp_path):
    path = write_sweep(tmp_path, {"optimizer.lr": [1e-4, 3e-4]}, settings={"run.steps": 500}, at_once=2)
    log = tmp_path / "log"
    with started("sweep", str(path), log=log) as process:
        wait_for_line(tmp_path / "sweep" / "logs" / "lr_0.0001_seed0.log", "step 1/500", process)
        below: list[psutil.Process] = descendants(process.pid)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        assert process.returncode == 130, log.read_text()
        assert len(below) >= 4 and still_there(below) == []
    assert [row["state"] for row in table_of(tmp_path)] == ["waiting", "waiting"]
    begun = time.monotonic()
    ended = run("sweep", str(path), "timeout_s=0.5", "seeds=[0]", log=log)
    assert ended.code == 14 and ended.left == [] and time.monotonic() - begun < 100
    assert [row["reason"] for row in table_of(tmp_path)] == ["timeout_s is 0.5: it took longer"] * 2
