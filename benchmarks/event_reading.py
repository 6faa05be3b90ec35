"""Reading a folder of event files: our reader beside TensorBoard's EventAccumulator, in turns.

    python -m benchmarks.event_reading [--points 1000000] [--tags 100] [--rounds 3]

The folder is written by torch's SummaryWriter, which takes longer than reading it. Each reader is a process of its own,
so that its memory and its CPU seconds are its own. Exits with 1 if the readers disagree about any point.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

# Each reader prints its CPU and wall-clock seconds, its peak memory, and a digest of what it has read.
_READERS = {
    "ours": """
from megacov.monitor.event_reader import read_history
def read(folder):
    history = read_history(Path(folder))
    return {tag: (series.steps, series.values) for tag, series in history.scalars.items()}
""",
    "ours, two tags": """
from megacov.monitor.event_reader import read_history
def read(folder):
    history = read_history(Path(folder), tags=("section_0/metric_0", "section_1/metric_1"))
    return {tag: (series.steps, series.values) for tag, series in history.scalars.items()}
""",
    "EventAccumulator": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
def read(folder):
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {
        tag: (np.array([each.step for each in found]), np.array([each.value for each in found]))
        for tag in events.Tags()["scalars"] for found in [events.Scalars(tag)]
    }
""",
}
_MEASURE = """
import hashlib, json, re, sys, time
from pathlib import Path
import numpy as np
{reader}
wall, cpu = time.perf_counter(), time.process_time()
found = read(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
# Not getrusage, whose peak is at least that of the process that started this one.
peak_kib = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
digest = hashlib.sha256()
for tag in sorted(found):
    digest.update(tag.encode() + found[tag][0].astype(np.int64).tobytes() + found[tag][1].astype(float).tobytes())
print(json.dumps({{
    "wall_s": wall, "cpu_s": cpu, "memory_mb": peak_kib * 1.024e-3,
    "points": sum(len(steps) for steps, _ in found.values()), "digest": digest.hexdigest(),
}}))
"""


def write_points(folder: Path, *, num_points: int, num_tags: int) -> None:
    """Write scalars as a run does: all tags at step 1, then at step 2, and so on.

    Args:
        folder: where the event file goes.
        num_points: points of all tags; a multiple of their number.
        num_tags: number of tags.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in range(1, num_points // num_tags + 1):
            for tag in range(num_tags):
                writer.add_scalar(f"section_{tag % 7}/metric_{tag}", step * 0.37 + tag, step)


def measure(reader: str, folder: Path) -> dict[str, float | str]:
    """Read a folder in a process of its own: `wall_s`, `cpu_s`, `memory_mb`, `points`, `digest`."""
    command = [sys.executable, "-c", _MEASURE.format(reader=_READERS[reader]), str(folder)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float | str] = json.loads(result.stdout)
    return found


def main(
    points: Annotated[int, typer.Option(min=1, help="Points in the folder.")] = 1_000_000,
    tags: Annotated[int, typer.Option(min=2, help="Tags in the folder.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each reader; the best counts.")] = 3,
) -> None:
    """Write a folder, time all readers on it, and print the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_points(folder, num_points=points, num_tags=tags)
        turns = [{reader: measure(reader, folder) for reader in _READERS} for _ in range(rounds)]
    best = {reader: min((turn[reader] for turn in turns), key=lambda each: each["wall_s"]) for reader in _READERS}
    for reader, found in best.items():
        print(
            f"{reader:18} {found['points']:>9,} points  {found['wall_s']:6.2f} s  {found['cpu_s']:6.2f} CPU s"
            f"  {found['memory_mb']:5.0f} MB  {found['wall_s'] / best['ours']['wall_s']:5.2f} x ours"
        )
    sys.exit(best["ours"]["digest"] != best["EventAccumulator"]["digest"])


if __name__ == "__main__":
    typer.run(main)
