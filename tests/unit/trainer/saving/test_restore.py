"""Which checkpoint a run continues from, and what of it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megacov.checkpoint.store import CheckpointStore
from megacov.data import CurriculumSettings, PromptAccuracies
from megacov.errors import CheckpointError
from megacov.megatron.random_state import random_states
from megacov.parallel.groups import ParallelGroups
from megacov.rollout.sampling.carried import NOT_BEGUN, CarriedGroup, dump_carried
from megacov.trainer.saving.about import read_about
from megacov.trainer.saving.checkpointing import CARRIED_FILE, CURRICULUM_FILE, TRAINER_FILE, _write_more, random_file
from megacov.trainer.saving.restore import (
    GoodCheckpoint,
    find_good_checkpoint,
    read_rollout_state,
    restore,
    set_newer_aside,
)
from megacov.trainer.state import RolloutState
from megacov.types import Prompt

ALONE = ParallelGroups()


def about(step: int) -> dict[str, Any]:
    """What a checkpoint records about its run."""
    counts = dict.fromkeys(("update", "skipped_in_a_row", "prompt_position", "adam_steps", "scheduler_steps"), step)
    run = {"config": {"model": {"dtype": "float32"}}, "shape": {}, "layout": {}, "prompts_sha256": "0"}
    return {"format": 1, "step": step, **counts, **run}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Checkpoints of steps 2 and 4, each with a shard and the trainer's record."""
    store = CheckpointStore(tmp_path)
    for step in (2, 4):
        folder = store.begin(step)
        (folder / "__0_0.distcp").write_bytes(bytes(range(256)) * 16)
        (folder / TRAINER_FILE).write_text(json.dumps(about(step)))
        store.publish(step, [])
    return store


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": (lambda newest: (newest / "__0_0.distcp").write_bytes(b"12"), "has 2 bytes instead of 4096"),
    "missing": (lambda newest: (newest / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "flipped": (lambda newest: _flip(newest / "__0_0.distcp"), "__0_0.distcp has another sha256"),
    "trainer": (lambda newest: _flip(newest / TRAINER_FILE), "trainer.json has another sha256"),
    "manifest": (lambda newest: _flip(newest / "MANIFEST.json"), "MANIFEST.json"),
    "no manifest": (lambda newest: (newest / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(
    damage: str, store: CheckpointStore, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, reason = DAMAGES[damage]
    harm(store.path(4))
    good = find_good_checkpoint(store, ALONE)
    assert good == GoodCheckpoint(store.path(2), about(2), frozenset({"__0_0.distcp", TRAINER_FILE}))
    said = capsys.readouterr().out
    assert "checkpoint step_00000004 is damaged and is skipped" in said and reason in said
    (aside,) = set_newer_aside(store, good)
    assert aside.is_dir() and store.find().candidates == (store.path(2),)


@pytest.mark.parametrize(("pointer", "said"), [("", "latest is empty"), ("step_00000002\n", "latest is stale")])
def test_a_wrong_pointer_is_said_and_changes_nothing(
    pointer: str, said: str, store: CheckpointStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.pointer.write_text(pointer)
    assert find_good_checkpoint(store, ALONE).about["step"] == 4
    assert said in capsys.readouterr().out


def test_a_renamed_checkpoint_does_not_win(store: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.path(2).rename(store.path(9))
    good = find_good_checkpoint(store, ALONE)
    assert good.folder == store.path(4)
    assert "step_00000009 is damaged and is skipped: its MANIFEST.json is of step 2" in capsys.readouterr().out
    (aside,) = set_newer_aside(store, good)
    assert aside.is_dir()


def test_only_files_of_the_manifest_are_read(store: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    group = CarriedGroup(Prompt("0", "1+1=", (5, 6), "2"), (NOT_BEGUN,))
    stray = store.path(4) / CARRIED_FILE
    stray.write_text(dump_carried([group]))
    (store.path(4) / "random").mkdir()
    (store.path(4) / random_file(0)).write_bytes(b"not random states")
    good = find_good_checkpoint(store, ALONE)
    assert good.folder == store.path(4) and read_rollout_state(good, RolloutState()) == RolloutState()
    printed = capsys.readouterr().out
    for name in (CARRIED_FILE, random_file(0)):
        assert f"step_00000004 holds {name}, which its manifest does not list: it is not read" in printed

    class NothingToRestore:
        def restore(self, folder: Path, **steps: int) -> None:
            assert folder == good.folder and steps == {"adam_steps": 3, "scheduler_steps": 3}

    state = dict.fromkeys(("step", "update", "skipped_in_a_row", "prompt_position"), 4)
    layout = {"tensor": 1}
    about = {**state, "adam_steps": 3, "scheduler_steps": 3, "layout": layout}
    # The stray file would end in an error if it were read.
    restored = restore(NothingToRestore(), replace(good, about=about), ALONE, layout=layout)  # type: ignore[arg-type]
    assert restored.step == 4
    # The same file is read where the manifest lists it.
    folder = store.begin(6)
    for name in ("__0_0.distcp", TRAINER_FILE):
        (folder / name).write_bytes((store.path(4) / name).read_bytes())
    (folder / CARRIED_FILE).write_bytes(stray.read_bytes())
    store.publish(6, [])
    assert read_rollout_state(find_good_checkpoint(store, ALONE), RolloutState()) == RolloutState((group,))


def test_without_a_good_checkpoint_every_reason_is_given(store: CheckpointStore, tmp_path: Path) -> None:
    _flip(store.path(2) / "__0_0.distcp")
    (store.path(4) / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="step_00000004 .* is missing.* step_00000002 .* another sha256"):
        find_good_checkpoint(store, ALONE)
    with pytest.raises(CheckpointError, match="holds none"):
        find_good_checkpoint(CheckpointStore(tmp_path / "elsewhere"), ALONE)


def test_a_format_of_another_version_is_refused(store: CheckpointStore) -> None:
    folder = store.begin(6)
    (folder / TRAINER_FILE).write_text('{"format": 2}')
    store.publish(6, [])
    with pytest.raises(CheckpointError, match="has format 2, and this version of megacov reads 1"):
        find_good_checkpoint(store, ALONE)


@pytest.mark.parametrize("name", [name for name in about(1) if name != "format"])
@pytest.mark.parametrize("value", ["gone", None, -1, 1.5, [], "text"])
def test_a_record_without_a_part_is_one_sentence(tmp_path: Path, name: str, value: object) -> None:
    if isinstance(about(1)[name], str) and value == "text":
        return
    record = about(1) | {name: value}
    if value == "gone":
        del record[name]
    (tmp_path / TRAINER_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=f"trainer.json: {name} is ") as caught:
        read_about(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "5", "[" * 3000, '{"format": 1, "step": ' + "9" * 5000 + "}", "\0"])
def test_a_record_that_is_none_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / TRAINER_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="trainer.json"):
        read_about(tmp_path)


def test_accuracies_are_read_where_the_manifest_lists_them(
    store: CheckpointStore, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = CurriculumSettings(low=0.2, high=0.8, decay=0.5, right_above=0.5, min_samples=1, revisit_every=3)
    new = PromptAccuracies.unknown(settings, num_prompts=3)
    known = new.after([(1, False), (2, True)], [])
    # A checkpoint of a run without a curriculum.
    assert read_rollout_state(find_good_checkpoint(store, ALONE), RolloutState(accuracies=new)).accuracies is new
    folder = store.begin(6)
    (folder / TRAINER_FILE).write_text(json.dumps(about(6)))
    written = _write_more(random_states(), RolloutState(accuracies=known), 0, folder)
    assert written == [random_file(0), CURRICULUM_FILE]
    assert _write_more(random_states(), RolloutState(), 1, folder) == [random_file(1)], "ranks beside rank 0 have none"
    store.publish(6, [])
    good = find_good_checkpoint(store, ALONE)
    read = read_rollout_state(good, RolloutState(accuracies=new)).accuracies
    assert read is not None and read.num_passed.tolist() == [0, 1, 0]
    assert read_rollout_state(good, RolloutState()) == RolloutState(), "a run without a curriculum reads none"
    assert "begins anew" not in capsys.readouterr().out
    other = PromptAccuracies.unknown(settings, num_prompts=4)
    assert read_rollout_state(good, RolloutState(accuracies=other)).accuracies is other
    assert "the data has another number of prompts, so the curriculum begins anew" in capsys.readouterr().out
    (folder.parent / "step_00000006" / CURRICULUM_FILE).write_text("")
    assert find_good_checkpoint(store, ALONE).folder == store.path(4), "its bytes are checked as all others are"


WHOLE = {"value": 1.5, "integral": 0.25, "measured": None}


@pytest.mark.parametrize(
    ("control", "controlled_by"),
    [
        ({**WHOLE, "value": float("nan")}, "a"),
        ({**WHOLE, "measured": "0.5"}, "a"),
        ({**WHOLE, "value": True}, "a"),
        ({"value": 1.5}, "a"),
        ({**WHOLE, "more": 1.0}, "a"),
        (WHOLE, None),
        ([1.0], "a"),
    ],
)
def test_a_broken_state_of_a_controller_is_one_sentence(tmp_path: Path, control: object, controlled_by: object) -> None:
    path = tmp_path / TRAINER_FILE
    for whole in ({}, {"control": None, "controlled_by": ""}, {"control": WHOLE, "controlled_by": "a"}):
        path.write_text(json.dumps(about(1) | whole))
        assert read_about(tmp_path) == about(1) | whole
    path.write_text(json.dumps(about(1) | {"control": control, "controlled_by": controlled_by}))
    with pytest.raises(
        CheckpointError, match="trainer.json: control is .* finite numbers value, integral and measured"
    ):
        read_about(tmp_path)
