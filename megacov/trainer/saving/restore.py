"""Restores a run from its newest intact checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megacov.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, check_file
from megacov.checkpoint.store import CheckpointStore, read_own_manifest
from megacov.errors import CheckpointError
from megacov.megatron.policy import Policy
from megacov.megatron.random_state import restore_random_states
from megacov.parallel.groups import ParallelGroups
from megacov.plan.control import ControlState
from megacov.rollout import load_carried
from megacov.trainer.agreement import from_rank_zero, gather, on_rank_zero
from megacov.trainer.saving.about import read_about
from megacov.trainer.saving.checkpointing import CARRIED_FILE, CURRICULUM_FILE, TRAINER_FILE, random_file
from megacov.trainer.state import RolloutState, TrainState


@dataclass(frozen=True)
class GoodCheckpoint:
    """A verified checkpoint, and its record of the run that wrote it.

    files: names of the files in its manifest. Nothing else in the folder may be read.
    """

    folder: Path
    about: Mapping[str, Any]
    files: frozenset[str] = frozenset()


def find_good_checkpoint(store: CheckpointStore, groups: ParallelGroups) -> GoodCheckpoint:
    """Find the newest intact checkpoint. Every rank verifies a part of the files.

    Rank 0 prints oddities, and the checkpoints it skips with the reason. Collectives: control.

    Args:
        store: checkpoints of the run.
        groups: process groups of this rank.

    Returns:
        The checkpoint, the same on all ranks.

    Raises:
        CheckpointError: there is none; raised on all ranks.
    """
    listing = on_rank_zero(store.find, groups)
    names, notes = from_rank_zero(
        ([], []) if listing is None else ([path.name for path in listing.candidates], list(listing.notes)), groups
    )
    reasons: list[str] = []
    for name in names:
        good = read_good_checkpoint(store.folder / name, groups)
        if isinstance(good, GoodCheckpoint):
            for sentence in (*notes, *reasons):
                _print(sentence, groups)
            return good
        reasons.append(f"checkpoint {name} is damaged and is skipped: {good}")
    why = " ".join(reasons) or f"{store.folder} holds none."
    raise CheckpointError(f"there is no checkpoint to resume from: {why}")


def read_good_checkpoint(folder: Path, groups: ParallelGroups) -> GoodCheckpoint | str:
    """Verify every byte of a checkpoint. Every rank reads a part of the files.

    Collectives: control.

    Args:
        folder: checkpoint folder.
        groups: process groups of this rank.

    Returns:
        The checkpoint, or one sentence on what is wrong with it; the same on all ranks.
    """
    records = _read_records(folder, groups)
    problem = records if isinstance(records, str) else _verify(folder, records, groups)
    if isinstance(records, str) or problem is not None:
        return str(problem)
    files = frozenset(record.name for record in records)
    for name in () if groups.world_rank else _unlisted(folder, files):
        _print(f"checkpoint {folder.name} holds {name}, which its manifest does not list: it is not read.", groups)
    about = from_rank_zero(on_rank_zero(lambda: read_about(folder), groups) or {}, groups)
    return GoodCheckpoint(folder, about, files)


def _print(sentence: str, groups: ParallelGroups) -> None:
    if groups.world_rank == 0:
        print(f"megacov: {sentence}", flush=True)


def _read_records(folder: Path, groups: ParallelGroups) -> list[FileRecord] | str:
    """Records of all files of a checkpoint, or one sentence on why there are none; the same on all ranks."""
    manifest: Manifest | None = None
    problem = None
    if groups.world_rank == 0:
        try:
            manifest = read_own_manifest(folder)
        except CheckpointError as error:
            problem = str(error)
        if manifest is not None and TRAINER_FILE not in {record.name for record in manifest.files}:
            problem = f"it has no {TRAINER_FILE}."
    problem = from_rank_zero(problem, groups)
    if problem is not None:
        return problem
    entries = from_rank_zero([] if manifest is None else [asdict(record) for record in manifest.files], groups)
    return [FileRecord(**entry) for entry in entries]


def _verify(folder: Path, records: Sequence[FileRecord], groups: ParallelGroups) -> str | None:
    """One sentence on what is wrong with a checkpoint's files, or None; the same on all ranks."""
    own_records = records[groups.world_rank :: groups.world_size]
    problems = [problem for record in own_records if (problem := check_file(folder, record)) is not None]
    everywhere = [problem for part in gather(problems, groups) for problem in part]
    if not everywhere:
        return None
    others = f", and {len(everywhere) - 1} other files" if len(everywhere) > 1 else ""
    return f"{everywhere[0]}{others}."


def _unlisted(folder: Path, files: Collection[str]) -> list[str]:
    """Names of the files in a checkpoint that its manifest does not list."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name not in files and name != MANIFEST_NAME)


def restore(policy: Policy, good: GoodCheckpoint, groups: ParallelGroups, *, layout: Mapping[str, int]) -> TrainState:
    """Restore policy, optimizer, schedule and random states, and return the state of the run.

    Collectives: those of `Policy.restore`.

    Args:
        policy: new policy; written in place.
        good: checkpoint from `find_good_checkpoint`.
        groups: process groups of this rank.
        layout: parallel sizes of this run. Random states belong to ranks, so a different layout keeps its own. Nothing
            that a run computes depends on them, because dropout is off.

    Returns:
        The state after the checkpoint's step.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    about = good.about
    policy.restore(good.folder, adam_steps=about["adam_steps"], scheduler_steps=about["scheduler_steps"])
    name = random_file(groups.world_rank)
    if about["layout"] == dict(layout) and name in good.files:
        restore_random_states(good.folder / name)
    return read_state(about)


def read_state(about: Mapping[str, Any]) -> TrainState:
    """The state of a run in a checkpoint's record. A record that is older than controllers has none of a controller."""
    known = {field.name: about[field.name] for field in fields(TrainState) if field.name in about}
    control = known.get("control")
    return TrainState(**{**known, "control": None if control is None else ControlState(**control)})


def read_rollout_state(good: GoodCheckpoint, new: RolloutState) -> RolloutState:
    """Read what the next batch continues from: carried groups, and accuracies of a curriculum. Rank 0 only.

    Args:
        good: checkpoint from `find_good_checkpoint`.
        new: the state of a run that begins with this configuration.

    Returns:
        The state. Accuracies begin anew if the checkpoint has none, or is of data with another number of prompts.

    Raises:
        CheckpointError: a file has another form.
    """
    carried = load_carried((good.folder / CARRIED_FILE).read_text("utf-8")) if CARRIED_FILE in good.files else ()
    accuracies = new.accuracies
    if accuracies is not None and CURRICULUM_FILE in good.files:
        accuracies = accuracies.load((good.folder / CURRICULUM_FILE).read_text("utf-8"))
        if accuracies is new.accuracies:
            print("megacov: the data has another number of prompts, so the curriculum begins anew.", flush=True)
    return RolloutState(carried, accuracies)


def set_newer_aside(store: CheckpointStore, good: GoodCheckpoint) -> list[Path]:
    """Rename the checkpoints newer than the one a run continues from, because they are damaged. Rank 0 only.

    Args:
        store: checkpoints of the run.
        good: checkpoint that the run continues from.

    Returns:
        Their new paths.

    Raises:
        CheckpointError: a checkpoint cannot be renamed.
    """
    candidates = store.find().candidates
    return [store.set_aside(path) for path in candidates[: candidates.index(good.folder)]]
