"""A folder is a checkpoint of the step that its manifest names, and nothing else in the folder is taken for one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megacov.checkpoint import CheckpointStore
from megacov.checkpoint.finished import FINISHED_NAME, note_finished, read_finished
from megacov.checkpoint.store import read_own_manifest
from megacov.errors import CheckpointError
from tests.support.kill_points import save


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Checkpoints of steps 10, 20 and 30."""
    for step in (10, 20, 30):
        save(tmp_path, step, str(step))
    return CheckpointStore(tmp_path)


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_folder_of_another_step_is_no_checkpoint(store, how):
    how(str(store.path(10)), str(store.path(900)))
    with pytest.raises(CheckpointError, match="is of step 10: the folder was renamed or copied to another step"):
        read_own_manifest(store.path(900))
    assert read_own_manifest(store.path(30)).step == 30


def test_pruning_deletes_only_what_it_identifies(store):
    shutil.copytree(store.path(10), store.path(900))
    (store.path(800)).mkdir()
    shutil.copytree(store.path(10), store.path(5))
    assert store.prune(keep_last=2, keep_every=0) == (10,)
    left = sorted(path.name for path in store.folder.iterdir())
    assert left == [store.path(step).name for step in (5, 20, 30, 800, 900)]


@pytest.mark.parametrize("name", ["step_99999999999999999999", "step_000000030", "step_0000000000030"])
def test_an_absurd_name_is_ignored_and_named(store, name):
    (store.folder / name).mkdir()
    found = store.find()
    assert [path.name for path in found.candidates] == ["step_00000030", "step_00000020", "step_00000010"]
    assert found.notes == (f"{name} is ignored: it is not the name of a checkpoint.",)
    assert store.prune(keep_last=1, keep_every=0) == (10, 20)
    assert (store.folder / name).is_dir()


def test_only_leftovers_of_megacov_are_removed(store):
    (store.folder / "tmp_mine").mkdir()
    (store.folder / "tmp_step_00000040").mkdir()
    assert store.clean() == ("tmp_step_00000040",)
    assert (store.folder / "tmp_mine").is_dir()


def test_a_replaced_checkpoint_keeps_its_step(store):
    replaced = store.folder / "tmp_replaced_00000030"
    store.path(30).rename(replaced)
    assert read_own_manifest(replaced).step == 30
    assert store.find().candidates[0] == replaced


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": "6"}', '{"step": true}', "[" * 100_000])
def test_the_end_of_a_run_is_noted_and_a_damaged_note_is_none(tmp_path, content):
    assert read_finished(tmp_path) is None
    note_finished(tmp_path, step=6)
    assert read_finished(tmp_path) == 6
    (tmp_path / FINISHED_NAME).write_text(content)
    assert read_finished(tmp_path) is None
