"""Faults around checkpoints, on real runs: how each is detected, what it costs, and whether the run ends the same.

    python -m benchmarks.faults [--kills 20] [--only PATTERN]

Each fault happens to a deterministic run of the tiny policy on two tensor-parallel ranks over gloo with the embedded
server: six steps, with a checkpoint every two. The run is then resumed, and its last weights are compared bit by bit
with those of an undisturbed run. Then one run is killed at random moments and resumed until it has ended. Exits with 1
if a run hangs, ends with other weights, or loses more steps than it may.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from tests.support import faults, faults_at_ends, folder_faults, verifier_faults
from tests.support.faults import Outcome

_COLUMNS = "{:<34} {:<76} {:>10} {:>5} {:>15} {:>6}"


def all_faults(folder: Path, reference: bytes) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """List the faults, in the order of the table.

    Args:
        folder: folder for the runs.
        reference: last weights of an undisturbed run.

    Yields:
        Name of a fault, and a function that makes it happen.
    """
    for fault, rank in faults.KILLS:
        run = folder / f"kill_{fault}_{rank}"
        yield (
            f"SIGKILL while {fault}, rank {rank}",
            lambda f=fault, r=rank, d=run: faults.rank_fails(f, r, d, reference),
        )
    for number in (signal.SIGTERM, signal.SIGUSR1):
        run = folder / number.name
        yield number.name, lambda n=number, d=run: faults.signalled(n, d, reference)
    for name, hangup in (("stdout closed", False), ("stdout closed, then SIGHUP", True)):
        yield name, lambda h=hangup: faults_at_ends.output_closed(folder / f"closed_{h}", reference, hangup=h)
    yield "second SIGTERM during a save", lambda: faults_at_ends.signalled_again(folder / "again", reference)
    for fault in faults.GOT_OVER:
        run = folder / fault.replace(" ", "_")
        yield fault, lambda f=fault, d=run: faults.rank_fails(f, 1, d, reference)
    for kind, words in (("hangs", "hangs"), ("dies", "dies"), ("nonsense", "returns nonsense")):
        for often in ("once", "always"):
            run = folder / f"verifier_{kind}_{often}"
            yield (
                f"verifier {words} {often}",
                lambda k=kind, o=often, d=run: verifier_faults.verifier_fails(k, d, reference, often=o),
            )
    waits = folder / "verifier_waits"
    yield "SIGTERM while the verifier hangs", lambda: verifier_faults.signalled_while_verifier_hangs(waits, reference)
    hangs = ("checkpoint.deadline_s=15.0",)
    yield "writer hangs", lambda: faults.rank_fails("writer hangs", 1, folder / "hangs", reference, overrides=hangs)
    stops = ("parallel.timeout_s=30.0", "parallel.control_timeout_s=30.0", "checkpoint.deadline_s=30.0")
    yield "rank stops", lambda: faults.rank_fails("rank stops", 1, folder / "stops", reference, overrides=stops)
    template = folder / "template"
    faults.make_template(template)
    for fault, damage in (faults.DAMAGES | folder_faults.STRAYS).items():
        run = folder / fault.replace(" ", "_")
        yield fault, lambda f=fault, h=damage, d=run: faults.damaged(f, h, template, d, reference)
    yield "two processes resume one run", lambda: faults.resumed_twice(template, folder / "twice", reference)
    yield "two runs, one folder of weights", lambda: folder_faults.two_runs_in_one_folder(folder / "one", reference)
    yield "run folder renamed", lambda: folder_faults.renamed(folder / "moved", reference)


def main(
    kills: Annotated[int, typer.Option(min=0, help="Kills at random moments.")] = 20,
    only: Annotated[str, typer.Option(help="Faults whose name matches this regular expression.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the random moments.")] = 0,
) -> None:
    """Run the list and print a table."""
    started, is_good = time.monotonic(), True
    with tempfile.TemporaryDirectory(prefix="megacov-faults-") as name:
        folder = Path(name)
        alone = faults.train(folder / "alone")
        assert alone.code == 0, alone.output
        reference = faults.final_weights(folder / "alone")
        print(_COLUMNS.format("fault", "detected by", "lost steps", "hang", "resumed exactly", "s"), flush=True)
        for fault, happen in all_faults(folder, reference):
            if not re.search(only, fault):
                continue
            since = time.monotonic()
            found = happen()
            is_good &= found.resumed_exactly and not found.hangs
            detected_by = found.detected_by if len(found.detected_by) <= 76 else found.detected_by[:73] + "..."
            answers = ("yes" if found.hangs else "none", "yes" if found.resumed_exactly else "NO")
            seconds = f"{time.monotonic() - since:.0f}"
            print(_COLUMNS.format(fault, detected_by, found.lost_steps, *answers, seconds), flush=True)
        if kills > 0:
            made, resumed_after, is_same = faults.storm(folder / "storm", num_kills=kills, seed=seed)
            is_good &= is_same
            print(f"{made} kills at random moments; resumed after steps {resumed_after}; the same weights: {is_same}")
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(not is_good)


if __name__ == "__main__":
    typer.run(main)
