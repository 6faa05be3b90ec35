"""Checkpoints appear and disappear whole, and every irregular state of the folder is reported."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megacov.checkpoint import MANIFEST_NAME, CheckpointStore, read_manifest, record_file
from megacov.errors import CheckpointError
from tests.support.kill_points import save, state, texts

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def test_a_published_checkpoint_is_found(store, tmp_path):
    save(tmp_path, 10, "ten")
    save(tmp_path, 20, "twenty")
    assert names(tmp_path) == ["checkpoints", "latest"]
    assert (tmp_path / "latest").read_text() == "step_00000020\n"
    found = store.find()
    assert found.candidates == (store.path(20), store.path(10))
    assert found.notes == ()
    assert [texts(path) for path in found.candidates] == [["twenty"], ["ten"]]
    assert [file.name for file in read_manifest(store.path(10)).files] == [
        "state.json",
        "weights/0.bin",
        "weights/1.bin",
    ]


def test_steps_sort_by_number(store, tmp_path):
    for step in (100_000_000, 9, 99_999_999):
        save(tmp_path, step, "x")
    assert [path.name for path in store.find().candidates] == ["step_100000000", "step_99999999", "step_00000009"]


def test_a_run_without_checkpoints_has_nothing_strange(store):
    assert store.find() == type(store.find())((), ())
    assert store.prune(keep_last=1, keep_every=0) == ()


def test_a_step_can_be_written_again(store, tmp_path):
    save(tmp_path, 10, "old")
    save(tmp_path, 10, "new")
    assert texts(store.path(10)) == ["new"]
    assert names(store.folder) == ["step_00000010"]


def test_what_was_left_over_is_removed_and_named(store, tmp_path):
    save(tmp_path, 10, "ten")
    for name in ("tmp_step_00000020", "tmp_delete_00000005"):
        (store.folder / name).mkdir()
        (store.folder / name / "file").write_text("half")
    assert [note for note in store.find().notes if "left behind" in note] == [
        "tmp_delete_00000005 was left behind by a process that was killed.",
        "tmp_step_00000020 was left behind by a process that was killed.",
    ]
    assert store.find().candidates == (store.path(10),)
    assert store.clean() == ("tmp_delete_00000005", "tmp_step_00000020")
    (store.folder / "tmp_step_00000020").mkdir()
    (store.folder / "tmp_step_00000020" / "file").write_text("half")
    assert names(store.begin(20)) == []
    assert names(store.folder) == ["step_00000010", "tmp_step_00000020"]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (None, "latest is missing."),
        ("", "latest is empty."),
        ("\0\0\0", "latest is empty."),
        ("step_00000030\n", "latest names 'step_00000030', which is not there."),
        ("../../etc\n", "latest names '../../etc', which is not there."),
        ("step_00000010\n", "latest is stale: it names step_00000010, and the newest checkpoint is step_00000020."),
        ("step_00000020\n", None),
    ],
)
def test_a_strange_pointer_is_named_and_changes_nothing(store, tmp_path, content, note):
    save(tmp_path, 10, "ten")
    save(tmp_path, 20, "twenty")
    (tmp_path / "latest").unlink()
    if content is not None:
        (tmp_path / "latest").write_text(content)
    assert store.find().candidates == (store.path(20), store.path(10))
    assert store.find().notes == (() if note is None else (note,))


def test_a_folder_without_manifest_is_named(store, tmp_path):
    save(tmp_path, 10, "ten")
    store.path(20).mkdir()
    found = store.find()
    assert found.candidates == (store.path(20), store.path(10))
    assert f"step_00000020 has no {MANIFEST_NAME}." in found.notes


def test_other_names_are_left_alone(store, tmp_path):
    save(tmp_path, 10, "ten")
    (store.folder / "step_best").mkdir()
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / "step_00000099").write_text("a file")
    assert store.find().candidates == (store.path(10),)
    save(tmp_path, 20, "twenty")
    store.prune(keep_last=1, keep_every=0)
    assert names(store.folder) == ["notes.txt", "step_00000020", "step_00000099", "step_best"]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [50]), (2, 0, [40, 50]), (1, 20, [20, 40, 50]), (9, 0, [10, 20, 30, 40, 50]), (0, 0, [50])],
)
def test_pruning_keeps_the_newest_and_every_so_many(store, tmp_path, keep_last, keep_every, kept):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step, "x")
    deleted = store.prune(keep_last=keep_last, keep_every=keep_every)
    assert names(store.folder) == [f"step_{step:08d}" for step in kept]
    assert sorted([*deleted, *kept]) == [10, 20, 30, 40, 50]
    assert store.find().notes == ()


def test_pruning_never_takes_what_latest_names(store, tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, "x")
    (tmp_path / "latest").write_text("step_00000010\n")
    store.prune(keep_last=1, keep_every=0)
    assert names(store.folder) == ["step_00000010", "step_00000030"]


def test_a_folder_without_manifest_does_not_count_as_kept(store, tmp_path):
    for step in (10, 20):
        save(tmp_path, step, "x")
    store.path(30).mkdir()
    (tmp_path / "latest").unlink()
    store.prune(keep_last=1, keep_every=0)
    assert names(store.folder) == ["step_00000020", "step_00000030"]


@pytest.mark.parametrize(("content", "reason"), [(None, "is missing"), ("cut", "has 3 bytes instead of 5")])
def test_a_recorded_file_must_be_there(store, tmp_path, content, reason):
    save(tmp_path, 10, "ten")
    folder = store.begin(20)
    (folder / "file").write_text("whole")
    record = record_file(folder, "file")
    (folder / "file").unlink()
    if content is not None:
        (folder / "file").write_text(content)
    with pytest.raises(CheckpointError, match=f"tmp_step_00000020/file {reason}: the checkpoint was not written whole"):
        store.publish(20, [record])
    assert store.find().candidates == (store.path(10),)
    store.abandon(20)
    assert names(store.folder) == ["step_00000010"]
    store.abandon(20)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=r"run/checkpoints.* cannot be .*: Not a directory\."):
        CheckpointStore(tmp_path / "run").begin(1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_what_the_system_refuses_is_one_sentence(store, monkeypatch, code):
    def refuse(path: Any, *arguments: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(CheckpointError) as raised:
        store.begin(1)
    assert os.strerror(code) in str(raised.value)
    assert str(store.folder) in str(raised.value)
    assert str(raised.value).endswith(".")


_FULL_DISK = """
import json, resource, sys
from pathlib import Path
from megacov.checkpoint import CheckpointStore
from megacov.errors import CheckpointError
from tests.support.kill_points import save, state

run_folder, said = Path(sys.argv[1]), []
save(run_folder, 10, "ten")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
store = CheckpointStore(run_folder)
for step in (10, 20):
    (store.begin(step) / "file").write_text("fits")
    try:
        store.publish(step, [])
    except CheckpointError as error:
        said.append(str(error))
    store.abandon(step)
print(json.dumps({"said": said, "state": state(run_folder)}))
"""


def run_program(*arguments: str) -> Any:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path):
    result = run_program("-c", _FULL_DISK, str(tmp_path))
    assert [sentence.rpartition("/")[2] for sentence in result["said"]] == [
        f"{MANIFEST_NAME} cannot be written: File too large; free space, or raise the quota."
    ] * 2
    assert result["state"] == {"candidates": [["step_00000010", ["ten"]]], "notes": []}
    assert result["state"]["candidates"] == json.loads(json.dumps(state(tmp_path)["candidates"]))


@pytest.mark.parametrize(
    ("scenario", "allowed", "last"),
    [
        ("save", [["twenty"], ["thirty"]], ["thirty"]),
        ("first", [None, ["ten"]], ["ten"]),
        ("again", [["old"], ["new"]], ["new"]),
        ("prune", [["thirty"]], ["thirty"]),
    ],
)
def test_a_kill_anywhere_leaves_a_whole_checkpoint(tmp_path, scenario, allowed, last):
    outcomes = run_program("-m", "tests.support.kill_points", scenario, str(tmp_path))
    assert len(outcomes) > 10, "nothing was killed"
    for number, outcome in enumerate(outcomes):
        where = f"killed at {number + 1} of {len(outcomes)}: {outcome}"
        # Every checkpoint with a good name is whole, and not only the one that would be loaded.
        assert all(content is not None for _, content in outcome["after"]["candidates"]), where
        newest = outcome["after"]["candidates"][0][1] if outcome["after"]["candidates"] else None
        assert newest in allowed, where
        assert outcome["later"]["candidates"][0] == ["step_00000040", ["forty"]], where
        assert all(content is not None for _, content in outcome["later"]["candidates"]), where
        assert outcome["later"]["notes"] == [], where
        assert outcome["left"] == [], where
    assert outcomes[-1]["after"]["candidates"][0][1] == last
    seen = {json.dumps([content for _, content in outcome["after"]["candidates"][:1]]) for outcome in outcomes}
    assert len(seen) == len(allowed), "kills on one side of a rename only show little"
