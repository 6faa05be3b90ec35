"""What watching entropy costs a step of the quickstart: law, alarms, theorem, breakdowns, tables and values of tokens.

    python -m benchmarks.monitoring [--steps 200] [--out FOLDER]

Trains the quickstart's policy with KL-Cov on one rank. Blocks of ten steps with the settings as they are take turns
with blocks in which all of it is off. Prints the processor time of rank 0 and the time by the clock, as means and
medians over blocks, and their ratios. Sampling on the server is part of a step by the clock, and not of the processor
time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from megacov.trainer import loop, step
from megacov.trainer.build import Run
from megacov.trainer.optimizer_step.token_report import TokenReport
from megacov.trainer.watch import Watch

ROOT = Path(__file__).parents[1]
CONFIG = "yaml_configs/runs/tiny_kl_cov.yaml"
BLOCK = 10  # the longest interval of the settings
_original_step = loop._step


@contextmanager
def _unwatched(run: Run) -> Iterator[None]:
    """Do nothing in a step that only serves to watch entropy; the watch gets the step later, outside of the time."""
    settings, late = run.settings, []
    run.settings = replace(settings, token_table_every=0, shows_tokens=False, theorem_every=0)
    with (
        mock.patch.object(step, "_report_tokens", return_value=TokenReport()),
        mock.patch.object(Watch, "add_step", lambda _, *point: late.append(point)),
    ):
        yield
    run.settings = settings
    if run.recorder is not None:
        for point in late:
            run.recorder.watch.add_step(*point)


def _rank(records: Path, arguments: list[str]) -> None:
    """Train as a rank does; writes a line with the times of each step."""
    from megacov.cli.main import main

    def timed(run: Run) -> None:
        is_watched = run.state.step // BLOCK % 2 == 0
        with mock.MagicMock() if is_watched else _unwatched(run):
            cpu, wall = time.process_time(), time.perf_counter()
            _original_step(run)
            times = time.process_time() - cpu, time.perf_counter() - wall
        with records.open("a") as file:
            file.write(json.dumps([is_watched, *times]) + "\n")

    with mock.patch.object(loop, "_step", timed):
        sys.argv = ["megacov", *arguments]
        main()


def measure(folder: Path, *, num_steps: int) -> dict[str, dict[str, list[float]]]:
    """Run the training; returns the seconds of each block by clock, and by whether it was watched.

    Args:
        folder: gets the run.
        num_steps: steps, an even number of blocks.

    Returns:
        "processor" and "clock", each with "on" and "off".
    """
    records = folder / "records.jsonl"
    overrides = [f"run.directory={folder / 'run'}", f"run.steps={num_steps}", "monitor.progress=off"]
    command = [sys.executable, "-m", "benchmarks.monitoring", "--rank", str(records), "train", CONFIG, *overrides]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MEGACOV_STORE": str(folder / "store")}
    subprocess.run(command, cwd=ROOT, env=os.environ | rank, check=True, stdout=sys.stderr)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    return {
        clock: {
            name: [sum(row[column] for row in block) for block in blocks if block[0][0] is is_watched]
            for name, is_watched in (("on", True), ("off", False))
        }
        for column, clock in ((1, "processor"), (2, "clock"))
    }


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--rank"]:
        _rank(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        times = measure(options.out or Path(temporary), num_steps=options.steps)
    for clock, seconds in times.items():
        on, off = seconds["on"][1:], seconds["off"][1:]  # the first of each warms up
        ratios = sorted(a / b for a, b in zip(on, off, strict=True))
        watched, alone, median = statistics.mean(on), statistics.mean(off), statistics.median(ratios)
        print(
            f"{clock:10s} {watched / BLOCK:.4f} s a step watched, {alone / BLOCK:.4f} s not: ratio of means "
            f"{watched / alone:.4f}, of pairs {ratios[0]:.3f} to {ratios[-1]:.3f}, median {median:.4f}"
        )


if __name__ == "__main__":
    main()
