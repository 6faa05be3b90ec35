"""`megacov sweep`: killed half-way and continued, with runs that fail, interrupted by Ctrl-C, and past its deadline."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from megacov.config import load_config
from tests.support.command import ROOT, Command, descendants, run, started, still_there, wait_for_line

pytestmark = pytest.mark.dist

BASE = ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml"
FOLDER = "my sweep #1"
"""Holds what YAML would take for a comment."""
SETTINGS = {
    "run.steps": 2,
    "rollout.prompts_per_step": 4,
    "rollout.samples_per_prompt": 4,
    "batch.updates_per_rollout": 1,
    "checkpoint.every": 1,
}


def write_sweep(folder: Path, search: dict[str, object], **settings: object) -> Path:
    """A sweep over a run of two small steps."""
    path = folder / "tried.yaml"
    sweep = {"name": "tried", "directory": str(folder / FOLDER), "base": str(BASE)}
    path.write_text(json.dumps({**sweep, "settings": {**SETTINGS, **settings}, "search": search}))
    return path


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / FOLDER / "table.csv").open(newline="") as file:
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


def test_a_sweep_that_is_killed_repeats_no_run_loses_none_and_outlives_a_run_that_fails(tmp_path):
    failing = {"rewards.verifier": "tests.support.verifiers:not_a_number"}
    entries = [{"name": "a"}, {"name": "b", "settings": {"optimizer.lr": 1e-3}}, {"name": "c", "settings": failing}]
    path = write_sweep(tmp_path, {"name": "list", "entries": entries})
    folder, log = tmp_path / FOLDER, tmp_path / "log"
    with started("sweep", str(path), log=log) as process:
        wait_for_line(log, "a_seed0: done", process)
        wait_for_line(folder / "logs" / "b_seed0.log", "step 1/2", process)
        kill(process)
    before = state_of(folder / "runs" / "a_seed0")
    assert len(before) > 5
    ended = run("sweep", str(path), log=log)
    assert ended.code == 14 and ended.left == [], ended.output
    starts = [line.split()[1] for line in ended.output.splitlines() if line.endswith(": starts")]
    assert starts == ["b_seed0:", "c_seed0:"] and state_of(folder / "runs" / "a_seed0") == before
    (failed,) = [line for line in ended.output.splitlines() if line.startswith("failed: ")]
    assert "c_seed0 (6)" in failed and "1 run of the sweep failed" in ended.output.splitlines()[-1]
    rows = table_of(tmp_path)
    assert [(row["setting"], row["state"], row["steps"]) for row in rows] == [
        ("a", "done", "2"),
        ("b", "done", "2"),
        ("c", "failed", ""),
    ]
    assert (folder / "sweep.png").stat().st_size > 10_000
    # The best setting is a configuration.
    best = load_config(folder / "best.yaml")
    values = {row["setting"]: float(row["value"]) for row in rows[:2]}
    assert max(values, key=lambda name: values[name]) == ("b" if best.optimizer.lr == 1e-3 else "a")


def test_ctrl_c_ends_all_runs_a_second_one_at_once_and_a_deadline_one(tmp_path):
    grid = {"name": "grid", "over": {"optimizer.lr": [1e-4, 3e-4]}}
    path = write_sweep(tmp_path, grid, **{"run.steps": 500})
    log = tmp_path / "log"
    with started("sweep", str(path), "at_once=2", log=log) as process:
        wait_for_line(tmp_path / FOLDER / "logs" / "lr_0.0001_seed0.log", "step 1/500", process)
        below: list[psutil.Process] = descendants(process.pid)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        assert process.returncode == 130, log.read_text()
        assert len(below) >= 4 and still_there(below) == []
    assert [row["state"] for row in table_of(tmp_path)] == ["waiting", "waiting"]
    with started("sweep", str(path), "at_once=2", log=log) as process:
        wait_for_line(log, "lr_0.0003_seed0: starts", process)
        below = descendants(process.pid)
        for launcher in psutil.Process(process.pid).children():
            launcher.suspend()  # so that the runs do not leave, which may take minutes where a checkpoint is large
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=20)
        assert process.returncode == 130, log.read_text()
        assert len(below) >= 2 and still_there(below, grace_s=30) == []
    begun = time.monotonic()
    ended = run("sweep", str(path), "timeout_s=0.5", "at_once=2", log=log)
    assert ended.code == 14 and ended.left == [] and time.monotonic() - begun < 100
    assert [row["reason"] for row in table_of(tmp_path)] == ["timeout_s is 0.5: it took longer"] * 2
