"""Going on from a checkpoint: the newest whose every byte is as it was written, if the configuration allows it."""

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
from megacov.trainer.saving.checkpointing import CARRIED_FILE, FORMAT, TRAINER_FILE, random_file
from megacov.trainer.state import TrainState


@dataclass(frozen=True)
class GoodCheckpoint:
    """A verified checkpoint, and what it says about the run that wrote it."""

    folder: Path
    about: Mapping[str, Any]


def find_good_checkpoint(store: CheckpointStore, groups: ParallelGroups) -> GoodCheckpoint:
    """The newest checkpoint that is whole. Every rank reads a share of the files.

    What is strange, and what is passed over and why, is printed by rank 0. Collectives: control.

    Args:
        store: of the run.
        groups: of this rank.

    Returns:
        The checkpoint, the same on all ranks.

    Raises:
        CheckpointError: there is none; raised on all ranks.
    """
    found = on_rank_zero(store.find, groups)
    names, notes = from_rank_zero(
        ([], []) if found is None else ([path.name for path in found.candidates], list(found.notes)), groups
    )
    reasons: list[str] = []
    for name in names:
        good = read_good_checkpoint(store.folder / name, groups)
        if isinstance(good, GoodCheckpoint):
            for sentence in (*notes, *reasons):
                _say(sentence, groups)
            return good
        reasons.append(f"checkpoint {name} is damaged and is passed over: {good}")
    why = " ".join(reasons) or f"{store.folder} holds none."
    raise CheckpointError(f"there is no checkpoint to resume from: {why}")


def read_good_checkpoint(folder: Path, groups: ParallelGroups) -> GoodCheckpoint | str:
    """A checkpoint, if every byte of it is as it was written. Every rank reads a share of the files.

    Collectives: control.

    Args:
        folder: of the checkpoint.
        groups: of this rank.

    Returns:
        The checkpoint, or what is wrong with it in a sentence; the same on all ranks.
    """
    problem = _verify(folder, groups)
    if problem is not None:
        return problem
    about = on_rank_zero(lambda: _read_about(folder), groups)
    return GoodCheckpoint(folder, from_rank_zero(about or {}, groups))


def _say(sentence: str, groups: ParallelGroups) -> None:
    if groups.world_rank == 0:
        print(f"megacov: {sentence}", flush=True)


def _verify(folder: Path, groups: ParallelGroups) -> str | None:
    """What is wrong with a checkpoint, in a sentence; None if nothing is. The same on all ranks."""
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
    mine = records[groups.world_rank :: groups.world_size]
    problems = [problem for record in mine if (problem := check_file(folder, record)) is not None]
    everywhere = [problem for part in gather(problems, groups) for problem in part]
    if not everywhere:
        return None
    others = f", and {len(everywhere) - 1} other files" if len(everywhere) > 1 else ""
    return f"{everywhere[0]}{others}."


def _read_about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / TRAINER_FILE).read_text(encoding="utf-8"))
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {about.get('format')}, and this version of megacov reads {FORMAT}.")
    return about


def check_continuation(
    saved: Mapping[str, Any], config: RunConfig, about_run: Mapping[str, Any], *, allowed: Sequence[str] = ()
) -> None:
    """Whether a run may go on from a checkpoint with this configuration. Rank 0.

    What was once allowed stays so while its value does, also for an older checkpoint: the run's folder remembers it.

    Args:
        saved: what the checkpoint says about the run that wrote it.
        config: of the run that is to go on.
        about_run: what its checkpoints will say.
        allowed: settings whose change the user wants.

    Raises:
        ConfigError: settings that contradict it, by name.
        DataError: the folder cannot be written.
    """
    found = contradictions(saved["config"], config)
    shape = json.loads(json.dumps(about_run["shape"]))
    others = [key for key in shape if saved["shape"].get(key) != shape[key]]
    if others:
        before, after = (", ".join(f"{key} {each.get(key)}" for key in others) for each in (saved["shape"], shape))
        raise ConfigError(
            f"the checkpoint of step {saved['step']} is of a model with {before}, model.path has {after}."
        )
    if saved["prompts_sha256"] != about_run["prompts_sha256"]:
        found["data.path"] = f"data.path {config.data.path} holds other prompts than those the run was trained on"
    now = {**settings(config), "data.path": about_run["prompts_sha256"]}
    path = config.run.directory / "allowed.json"
    remembered = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    remembered |= {name: now[name] for name in allowed if name in found}
    refused = [sentence for name, sentence in found.items() if name not in remembered or remembered[name] != now[name]]
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
    """Fill policy, optimizer, schedule and random states, and tell where the run stands.

    Collectives: those of `Policy.restore`.

    Args:
        policy: fresh; written in place.
        good: from `find_good_checkpoint`.
        groups: of this rank.
        layout: sizes of this run's layout. The random states are those of ranks, so another layout begins with its own;
            nothing that a run computes depends on them, since dropout is off.

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
    """What partial rollouts had left. Rank 0.

    Args:
        good: from `find_good_checkpoint`.

    Returns:
        Nothing where nothing was left, or the checkpoint is from before there were any.
    """
    path = good.folder / CARRIED_FILE
    return load_carried(path.read_text(encoding="utf-8")) if path.is_file() else ()


def set_newer_aside(store: CheckpointStore, good: GoodCheckpoint) -> list[Path]:
    """Take the names of checkpoints newer than the one a run goes on from: they are damaged. Rank 0.

    Args:
        store: of the run.
        good: where the run goes on.

    Returns:
        Where they are now.

    Raises:
        CheckpointError: one cannot be renamed.
    """
    candidates = store.find().candidates
    return [store.set_aside(path) for path in candidates[: candidates.index(good.folder)]]
