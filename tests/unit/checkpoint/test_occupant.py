"""What a run's folder holds before a run begins there: nothing, a failed start, a run, or something else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from megacov.checkpoint.occupant import look_at_run_folder
from megacov.errors import DataError

CONFIG = ("config.yaml", "run: {name: a, steps: 3}\n")
START = (CONFIG, ("run.lock", "{}"), ("tensorboard/events.out.tfevents.1", "x"), ("logs/server.log", ""), ("samples/",))


def fill(folder: Path, entries: Iterable[tuple[str, ...]]) -> Path:
    """Files as (name, content), and folders as (name/,)."""
    folder.mkdir(exist_ok=True)
    for name, *content in entries:
        path = folder / name
        (path if not content else path.parent).mkdir(parents=True, exist_ok=True)
        if content:
            path.write_text(content[0])
    return folder


@pytest.mark.parametrize(
    ("entries", "occupant"),
    [
        ((), "nothing"),
        ((("run.lock", "{}"), ("logs/slurm_1_0/environment.txt", "")), "nothing"),
        (START, "a start"),
        ((*START, ("weights/owner.json", "{}"), ("checkpoints/",), ("ended.json", "{}"), ("run_id", "1")), "a start"),
        ((("tmp_config.yaml", "run:"), ("run.lock", "{}")), "a start"),
        ((*START, ("samples/step_000001.jsonl", "")), "a run"),
        ((*START, ("status.json", "{}")), "a run"),
        ((*START, ("checkpoints/step_00000001/MANIFEST.json", "{}")), "a run"),
        ((*START, ("weights/v1/config.json", "{}")), "a run"),
        ((*START, ("notes.txt", "mine")), "a run"),
        ((("checkpoints/step_00000001/MANIFEST.json", "{}"), ("run.lock", "")), "a run"),
        ((("config.yaml", "run: [\n"), ("run.lock", ""), ("samples/a", "")), "a run"),
    ],
)
def test_what_lies_in_a_folder(entries: tuple[tuple[str, ...], ...], occupant: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "run", entries)
    assert look_at_run_folder(folder) == occupant


def test_a_folder_that_does_not_exist_is_free(tmp_path: Path) -> None:
    assert look_at_run_folder(tmp_path / "run") == "nothing"


@pytest.mark.parametrize(
    "entries",
    [
        (("thesis.tex", "years of work"),),
        (("checkpoints/model.pt", "of another program"),),
        (("config.yaml", "services: {web: 1}\n"), ("logs/a", "")),
        (("config.yaml", "- run\n"),),
        (("config.yaml", "\x00"),),
        (("run.lock", ""), ("src/a.py", "")),
    ],
)
def test_a_folder_of_something_else_is_refused(entries: tuple[tuple[str, ...], ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which is not empty and holds no run of megacov"):
        look_at_run_folder(fill(tmp_path / "run", entries))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        look_at_run_folder(tmp_path / "run")
