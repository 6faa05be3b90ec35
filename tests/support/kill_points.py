"""Kill a process at every place where it touches a folder, and look at what each kill left behind.

Run as a program, which has no threads and so may fork: `python -m tests.support.kill_points SCENARIO FOLDER` prints a
JSON list with one entry a kill; the last is of the process that nothing killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.checkpoint import CheckpointStore, check_files, read_manifest, record_file
from megacov.errors import CheckpointError

# Events of Python's audit hooks, raised just before the system call; os.replace is a rename.
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Scenario:
    """`prepare` and `act` take the run folder; `act` is what is killed."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]


def save(run_folder: Path, step: int, text: str) -> None:
    """A checkpoint whose every file holds the text; one of its files is recorded by the writer."""
    store = CheckpointStore(run_folder)
    folder = store.begin(step)
    (folder / "weights").mkdir()
    for name in ("weights/0.bin", "weights/1.bin", "state.json"):
        (folder / name).write_text(text)
    store.publish(step, [record_file(folder, "weights/0.bin")])


def _save_two(run_folder: Path) -> None:
    save(run_folder, 10, "ten")
    save(run_folder, 20, "twenty")


def _save_three_and_lose_the_pointer(run_folder: Path) -> None:
    _save_two(run_folder)
    save(run_folder, 30, "thirty")
    (run_folder / "latest").write_text("")


def _save_and_prune(run_folder: Path) -> None:
    save(run_folder, 30, "thirty")
    CheckpointStore(run_folder).prune(keep_last=2, keep_every=0)


SCENARIOS = {
    "save": Scenario(_save_two, _save_and_prune),
    "first": Scenario(lambda run_folder: None, lambda run_folder: save(run_folder, 10, "ten")),
    "again": Scenario(lambda run_folder: save(run_folder, 10, "old"), lambda run_folder: save(run_folder, 10, "new")),
    "prune": Scenario(
        _save_three_and_lose_the_pointer,
        lambda run_folder: CheckpointStore(run_folder).prune(keep_last=1, keep_every=0),
    ),
}


def texts(folder: Path) -> list[str] | None:
    """Contents of the files of a checkpoint, or None if it does not verify."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return None
    if check_files(folder, manifest.files):
        return None
    return sorted({(folder / record.name).read_text() for record in manifest.files})


def state(run_folder: Path) -> dict[str, Any]:
    """The checkpoints that a later process would find."""
    found = CheckpointStore(run_folder).find()
    return {"candidates": [(path.name, texts(path)) for path in found.candidates], "notes": list(found.notes)}


def _die_at(number: int) -> None:
    """End this process by SIGKILL just before its event of that number."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _EVENTS:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def run_scenario(scenario: Scenario, root: Path) -> list[dict[str, Any]]:
    """Kill it at its first event, at its second, ... and once not at all."""
    base = root / "base"
    base.mkdir()
    scenario.prepare(base)
    outcomes: list[dict[str, Any]] = []
    killed = True
    while killed:
        run_folder = root / str(len(outcomes))
        shutil.copytree(base, run_folder)
        child = os.fork()
        if child == 0:
            _die_at(len(outcomes) + 1)
            scenario.act(run_folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, f"ended with {status}"
        after = state(run_folder)
        save(run_folder, 40, "forty")
        left = sorted(path.name for path in run_folder.rglob("tmp_*"))
        outcomes.append({"after": after, "later": state(run_folder), "left": left})
    return outcomes


if __name__ == "__main__":
    print(json.dumps(run_scenario(SCENARIOS[sys.argv[1]], Path(sys.argv[2]))))
