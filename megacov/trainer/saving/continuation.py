"""Whether a run may continue from a checkpoint: its settings, model folder, prompts and number of steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megacov.checkpoint.store import CheckpointStore
from megacov.config import RunConfig
from megacov.config.resume import contradictions, settings, too_few_steps
from megacov.errors import ConfigError, DataError
from megacov.files import write_atomically
from megacov.json_text import JsonError, read_json
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import on_rank_zero
from megacov.trainer.run_folder import write_config
from megacov.trainer.saving.model_files import changed_model_files
from megacov.trainer.saving.restore import GoodCheckpoint, find_good_checkpoint, set_newer_aside

_ALLOWED_FILE = "allowed.json"


def find_accepted_checkpoint(
    config: RunConfig,
    store: CheckpointStore,
    about_run: Mapping[str, Any],
    groups: ParallelGroups,
    *,
    allowed: Sequence[str] | None,
) -> GoodCheckpoint | None:
    """Find the checkpoint to continue from, and write the configuration if it may. Collectives: control.

    Args:
        config: configuration to continue with.
        store: checkpoints of the run.
        about_run: record that new checkpoints will hold; read on rank 0 only.
        groups: process groups of this rank.
        allowed: settings that the user allows to change; None for a run that begins anew.

    Returns:
        The checkpoint, the same on all ranks; None for a run that begins anew.

    Raises:
        CheckpointError: there is none.
        ConfigError: the configuration contradicts it.
        DataError: the folder cannot be written.
    """
    if allowed is None:
        return None
    good = find_good_checkpoint(store, groups)

    def accept() -> None:
        check_continuation(good.about, config, about_run, allowed=allowed)
        for path in set_newer_aside(store, good):
            print(f"megacov: the damaged checkpoint is now {path}", flush=True)
        if good.about["step"] == config.run.steps:
            print(
                f"megacov: all {config.run.steps} steps of run.steps are done already; only the end is left.",
                flush=True,
            )
        else:
            write_config(config)
        print(f"megacov: continuing after step {good.about['step']} from {good.folder}", flush=True)

    on_rank_zero(accept, groups)
    return good


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
        ConfigError: the run has done more steps than it may, or settings or files contradict the checkpoint.
        DataError: the folder cannot be written.
    """
    if config.run.steps < saved["step"]:
        raise ConfigError(too_few_steps(config, done=saved["step"]))
    shape = json.loads(json.dumps(about_run["shape"]))
    others = [key for key in shape if saved["shape"].get(key) != shape[key]]
    if others:
        before, after = (", ".join(f"{key} {each.get(key)}" for key in others) for each in (saved["shape"], shape))
        raise ConfigError(
            f"the checkpoint of step {saved['step']} is of a model with {before}, model.path has {after}."
        )
    model_files = about_run.get("model_files", {})
    conflicts = contradictions(saved["config"], config)
    conflicts |= changed_model_files(saved.get("model_files", {}), model_files, config.model.path)
    if saved["prompts_sha256"] != about_run["prompts_sha256"]:
        conflicts["data.path"] = _other_prompts(saved.get("prompt_files"), about_run["prompt_files"])
    path = config.run.directory / _ALLOWED_FILE
    now = {**settings(config), **model_files, "data.path": about_run["prompts_sha256"]}
    # A value that the checkpoint has in a mapping and the run has not is remembered as None.
    remembered = _read_allowed(path) | {name: now.get(name) for name in allowed if name in conflicts}
    refused = [
        sentence for name, sentence in conflicts.items() if name not in remembered or remembered[name] != now.get(name)
    ]
    if refused:
        raise ConfigError(
            f"the configuration contradicts the checkpoint of step {saved['step']}: {'; '.join(refused)}: take the old "
            "values, or name each with --allow if you mean it."
        )
    if "model_files" not in saved:
        print(
            f"megacov: the checkpoint of step {saved['step']} is of an older version of megacov, which recorded "
            "nothing of the model folder: a change of its weights, tokenizer or chat template is not noticed.",
            flush=True,
        )
    if remembered:
        try:
            write_atomically(path, json.dumps(remembered, indent=1), is_synced=True)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error


def _other_prompts(before: Any, after: Sequence[Mapping[str, str]]) -> str:
    """Which files of prompts have changed. A checkpoint of an older version has one file, and does not name it."""
    words = "holds other prompts than those the run was trained on"
    if not isinstance(before, list):
        return f"data.path: {', '.join(each['name'] for each in after)} {words}"
    if len(before) != len(after):
        return f"data.path has {len(after)} files of prompts, and the run was trained on {len(before)}"
    changed = [new["name"] for old, new in zip(before, after, strict=True) if old.get("sha256") != new["sha256"]]
    if sorted(each.get("sha256") for each in before) == sorted(each["sha256"] for each in after):
        return f"data.path has the files of prompts in another order, from {changed[0]} on"
    return f"data.path: {', '.join(changed)} {words}"


def _read_allowed(path: Path) -> dict[str, Any]:
    """Changes that were once allowed. A damaged file counts as empty: what it allowed is then refused by name."""
    try:
        remembered = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, JsonError):
        remembered = None
    if not isinstance(remembered, dict):
        print(f"megacov: {path} is damaged and is ignored: name again with --allow what may differ.", flush=True)
        return {}
    return remembered
