"""The subject of an evaluation: a model folder, or a checkpoint of a run, which must be exported."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from megacov.checkpoint import MANIFEST_NAME, CheckpointStore
from megacov.errors import CheckpointError, DataError

_EXPORT = "model_step_"


@dataclass(frozen=True, slots=True)
class Target:
    """A subject of an evaluation.

    name: in the report and in the folder of the results.
    model: model folder; None for a checkpoint, which must be exported first.
    run, step: run folder and step of a checkpoint.
    """

    name: str
    model: Path | None
    run: Path | None = None
    step: int = 0


def find_target(path: Path) -> Target:
    """Find out what a path is.

    Args:
        path: run folder, folder of a checkpoint, model folder, or id of a model on the Hub.

    Returns:
        What is evaluated; the newest checkpoint of a run. A model of the Hub is downloaded.

    Raises:
        DataError: it is none of them.
        CheckpointError: the run has no checkpoint.
    """
    from megacov.plan.hub import download_model, hub_id

    model_id = hub_id(path)
    if model_id is not None:
        return Target(model_id.replace("/", "--"), download_model(model_id, None))
    if (path / "config.json").is_file():
        return Target(path.resolve().name, path)
    is_step = re.fullmatch(r"step_([0-9]+)", path.name)
    run = path.absolute().parent.parent if is_step else path
    if not (run / "config.yaml").is_file():
        raise DataError(
            f"{path} is no run folder (with config.yaml), no checkpoint of one (RUN/checkpoints/step_N) and no model "
            "folder (with config.json): correct the path."
        )
    if is_step:
        return Target(f"{run.resolve().name}-step_{int(is_step[1])}", None, run, int(is_step[1]))
    candidates = CheckpointStore(run).find().candidates
    steps = [int(named[1]) for each in candidates if (named := re.fullmatch(r"step_([0-9]+)", each.name))]
    if not steps:
        raise CheckpointError(f"{run} has no checkpoint yet: set checkpoint.every, or wait for the first.")
    return Target(f"{run.resolve().name}-step_{steps[0]}", None, run, steps[0])


def stop_token_ids(given: list[int] | None, target: Target) -> tuple[int, ...]:
    """Token ids that end a response: those given, or else those of the run's rollouts."""
    if given or target.run is None:
        return tuple(sorted(set(given or ())))
    from megacov.config import load_config

    return tuple(sorted(set(load_config(target.run / "config.yaml", []).rollout.stop_token_ids)))


def export(target: Target, out: Path) -> Path:
    """Export a checkpoint into the folder of the results. An evaluation that was stopped has left it there, whole.

    Its name holds a digest of the checkpoint: a run that goes on from an earlier step writes other weights of this one.
    An export outlives its checkpoint, which the run may delete.
    """
    assert target.run is not None
    manifest = CheckpointStore(target.run).path(target.step) / MANIFEST_NAME
    exports = sorted(out.glob(f"{_EXPORT}{target.step}-*"))
    if not manifest.is_file() and exports:
        return exports[0]
    digest = hashlib.sha256(manifest.read_bytes() if manifest.is_file() else b"").hexdigest()
    folder = out / f"{_EXPORT}{target.step}-{digest[:16]}"
    for each in exports:
        if each != folder:
            shutil.rmtree(each, ignore_errors=True)
    if not folder.is_dir():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as `megacov export` does: the run may use the GPUs
        from megacov.trainer.saving.export import export_run

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out} cannot be made ({error.strerror}): name another folder with --out.") from error
        print(f"megacov: the checkpoint of step {target.step} is exported to {folder}.", flush=True)
        export_run(target.run, folder, step=target.step, dtype=None)
    return folder
