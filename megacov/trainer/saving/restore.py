"""Restores a run from its newest intact checkpoint, if the configuration allows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megacov.checkpoint.manifest import FileRecord, Manifest, check_file, read_manifest
from megacov.checkpoint.store import CheckpointStore
from megacov.config import RunConfig
from megacov.config.resume import contradictions, settings
from megacov.errors import CheckpointError, ConfigError, DataError
from megacov.megatron.policy import Policy
from megacov.megatron.random_state import restore_random_states
from megacov.parallel.groups import ParallelGroups
from megacov.rollout import CarriedGroup, load_carried
from megacov.trainer.agreement import from_rank_zero, gather, on_rank_zero
from megacov.trainer.saving.about import read_about
from megacov.trainer.saving.checkpointing import CARRIED_FILE, TRAINER_FILE, random_file
from megacov.trainer.state import TrainState


@dataclass(frozen=True)
class GoodCheckpoint:
    """A verified checkpoint, and its record of the run that wrote it."""

    folder: Path
    about: Mapping[str, Any]


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
    problem = _verify(folder, groups)
    if problem is not None:
        return problem
    about = on_rank_zero(lambda: read_about(folder), groups)
    return GoodCheckpoint(folder, from_rank_zero(about or {}, groups))


def _print(sentence: str, groups: ParallelGroups) -> None:
    if groups.world_rank == 0:
        print(f"megacov: {sentence}", flush=True)


def _verify(folder: Path, groups: ParallelGroups) -> str | None:
    """One sentence on what is wrong with a checkpoint, or None; the same on all ranks."""
    manifest: Manifest | None = None
    problem = None
    if groups.world_rank == 0:
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            problem = str(error)
        if manifest is not None and TRAINER_FILE not in {record.name for record in manifest.files}:
            problem = f"it has no {TRAINER_FILE}."
    problem = from_rank_zero(problem, groups)
    if problem is not None:
        return problem
    entries = from_rank_zero([] if manifest is None else [asdict(record) for record in manifest.files], groups)
    records = [FileRecord(**entry) for entry in entries]
    own_records = records[groups.world_rank :: groups.world_size]
    problems = [problem for record in own_records if (problem := check_file(folder, record)) is not None]
    everywhere = [problem for part in gather(problems, groups) for problem in part]
    if not everywhere:
        return None
    others = f", and {len(everywhere) - 1} other files" if len(everywhere) > 1 else ""
    return f"{everywhere[0]}{others}."


def check_continuation(
    saved: Mapping[str, Any], config: RunConfig, about_run: Mapping[str, Any], *, allowed: Sequence[str] = ()
) -> None:
    """Check that a run may continue from a checkpoint with this configuration. Rank 0 only.

    The run folder remembers a change that was once allowed, and for older checkpoints too, until its value changes.

    Args:
        saved: the checkpoint's record of the run that wrote it.
        config: configuration to continue with.
        about_run: record that new checkpoints will hold.
        allowed: settings that the user allows to change.

    Raises:
        ConfigError: names the settings that contradict the checkpoint.
        DataError: the folder cannot be written.
    """
    conflicts = contradictions(saved["config"], config)
    shape = json.loads(json.dumps(about_run["shape"]))
    others = [key for key in shape if saved["shape"].get(key) != shape[key]]
    if others:
        before, after = (", ".join(f"{key} {each.get(key)}" for key in others) for each in (saved["shape"], shape))
        raise ConfigError(
            f"the checkpoint of step {saved['step']} is of a model with {before}, model.path has {after}."
        )
    if saved["prompts_sha256"] != about_run["prompts_sha256"]:
        conflicts["data.path"] = f"data.path {config.data.path} holds other prompts than those the run was trained on"
    now = {**settings(config), "data.path": about_run["prompts_sha256"]}
    path = config.run.directory / "allowed.json"
    remembered = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    remembered |= {name: now[name] for name in allowed if name in conflicts}
    refused = [
        sentence for name, sentence in conflicts.items() if name not in remembered or remembered[name] != now[name]
    ]
    if refused:
        raise ConfigError(
            f"the configuration contradicts the checkpoint of step {saved['step']}: {'; '.join(refused)}: take the old "
            "values, or name each with --allow if you mean it."
        )
    if remembered:
        try:
            path.write_text(json.dumps(remembered, indent=1), encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error


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
    if about["layout"] == dict(layout):
        restore_random_states(good.folder / random_file(groups.world_rank))
    return TrainState(**{field.name: about[field.name] for field in fields(TrainState)})


def read_carried(good: GoodCheckpoint) -> tuple[CarriedGroup, ...]:
    """Groups that partial rollouts carried over, if the checkpoint holds any. Rank 0 only."""
    path = good.folder / CARRIED_FILE
    return load_carried(path.read_text(encoding="utf-8")) if path.is_file() else ()


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
