"""One run writes to a folder of weights: another is refused before it has moved, deleted or replaced anything."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from megacov.checkpoint.lock import RunLock
from megacov.config import RunConfig, load_config
from megacov.errors import DataError
from megacov.trainer.run_folder import open_run_folder
from megacov.weight_sync.folder_owner import OWNER_NAME, RUN_ID_NAME, FolderOwner, read_owner
from tests.support.kill_points import save


def _config(run: Path, directory: Path | None, *overrides: str) -> RunConfig:
    named = [] if directory is None else [f"weight_sync.directory={directory}"]
    return load_config("yaml_configs/runs/tiny_grpo.yaml", [f"run.directory={run}", *named, *overrides])


def _open(run: Path, directory: Path | None, *overrides: str, is_resumed: bool = False) -> FolderOwner | None:
    """Start a run and end it again; gives the owner of the folder of weights."""
    with ExitStack() as stack:
        open_run_folder(_config(run, directory, *overrides), stack, is_resumed=is_resumed)
    return None if directory is None else read_owner(directory)


def test_another_run_is_refused_and_changes_nothing(tmp_path):
    first, second, shared = tmp_path / "first", tmp_path / "second", tmp_path / "shared"
    owner = _open(first, shared)
    assert owner is not None and owner.run == str(first)
    # Nothing is lost yet, so another run may take the folder, as after a failed start.
    assert _open(second, shared) != owner
    owner = _open(first, shared, is_resumed=True)
    (shared / "v6").mkdir()
    with pytest.raises(DataError, match=f"holds the weights of the run in {first}: give each run a folder of its own"):
        _open(second, shared)
    with pytest.raises(DataError, match="holds the weights of the run in"):
        _open(second, shared, is_resumed=True)
    assert not (tmp_path / "second.1").exists() and read_owner(shared) == owner
    # A start that made no step is started again in its place, and keeps its folder of weights.
    assert _open(first, shared) == owner and not (tmp_path / "first.1").exists()
    # A run without a checkpoint left nothing to keep: a job that begins it anew takes the folder over.
    (first / "samples").mkdir(exist_ok=True)
    (first / "samples" / "step_000001.jsonl").touch()
    before, owner = owner, _open(first, shared)
    assert owner not in (None, before) and (tmp_path / "first.1").is_dir()
    shutil.rmtree(tmp_path / "first.1")
    # A new run under the same name would move a run with checkpoints aside, and delete its weights.
    save(first, 6, "six")
    with pytest.raises(DataError, match="holds the weights of the run in"):
        _open(first, shared)
    assert not (tmp_path / "first.1").exists()
    assert _open(first, shared, is_resumed=True) == owner
    # Transports that write nothing to the folder do not need it.
    broadcast = ("weight_sync.transport=broadcast", "rollout.engine=sglang", "rollout.servers=1")
    _open(tmp_path / "third", shared, *broadcast)


def test_the_owner_keeps_its_folder_under_another_name_and_a_copy_does_not_get_it(tmp_path):
    run, shared = tmp_path / "run", tmp_path / "shared"
    _open(run, shared)
    (shared / "v6").mkdir()
    shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(DataError, match="holds the weights of the run in"):
        _open(tmp_path / "copy", shared, is_resumed=True)
    run.rename(tmp_path / "renamed")
    shutil.rmtree(tmp_path / "copy")
    found = _open(tmp_path / "renamed", shared, is_resumed=True)
    assert found is not None and found.run == str(tmp_path / "renamed")


def test_two_processes_never_share_a_folder(tmp_path):
    shared = tmp_path / "shared"
    with RunLock(shared), pytest.raises(DataError, match=r"weight_sync\.directory .* is in use by process"):
        _open(tmp_path / "run", shared)
    assert not (tmp_path / "run").exists()
    second = RunLock(shared, setting="weight_sync.directory")
    with RunLock(shared), pytest.raises(DataError, match=r"or choose another weight_sync\.directory"), second:
        pass


def test_weights_of_nobody_belong_to_a_run_that_continues_and_to_no_new_one(tmp_path):
    run, shared = tmp_path / "run", tmp_path / "shared"
    (shared / "v6").mkdir(parents=True)
    for content in (None, "", "{", "[]", '{"run_id": 1, "run": 2}'):
        if content is not None:
            (shared / OWNER_NAME).write_text(content)
        with pytest.raises(DataError, match="holds v6, which this run did not write"):
            _open(run, shared)
        assert not run.exists()
    _open(run, None)
    (run / RUN_ID_NAME).unlink(missing_ok=True)  # a run that an older version of megacov began
    assert _open(run, shared, is_resumed=True) == FolderOwner.of_run(run)


def test_weights_inside_the_run_folder_move_aside_with_it(tmp_path):
    run = tmp_path / "run"
    first = _open(run, run / "weights")
    (run / "weights" / "v6").mkdir()
    assert _open(run, run / "weights") not in (None, first)
    assert (tmp_path / "run.1" / "weights" / "v6").is_dir()
