"""The folder of a run: its resolved configuration, TensorBoard logs, samples and server logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from megacov.config import RunConfig, dump_config
from megacov.errors import DataError
from megacov.types import Sample


def open_run_folder(config: RunConfig) -> Path:
    """Make the folder and write the configuration into it. An earlier run of that name is moved aside, never mixed in.

    Args:
        config: of the run.

    Returns:
        The folder.

    Raises:
        DataError: it cannot be written.
    """
    folder = config.run.directory
    try:
        if (folder / "config.yaml").exists():
            aside = next(path for i in count(1) if not (path := folder.with_name(f"{folder.name}.{i}")).exists())
            folder.rename(aside)
            print(f"megacov: the earlier run in {folder} is now {aside}", flush=True)
        for name in ("tensorboard", "samples", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    except OSError as error:
        raise DataError(f"run.directory {folder} cannot be written: {error.strerror}.") from error
    return folder


def write_samples(folder: Path, samples: Sequence[Sample], *, step: int) -> None:
    """Keep some responses of a step for reading.

    Args:
        folder: of the run.
        samples: to write, one JSON object a line.
        step: of the run.

    Raises:
        DataError: the disk does not take them.
    """
    path = folder / "samples" / f"step_{step:06d}.jsonl"
    lines = [
        json.dumps(
            {
                "prompt": sample.prompt.text,
                "response": sample.completion.text,
                "answer": sample.prompt.answer,
                "reward": sample.reward,
                "tokens": len(sample.completion.token_ids),
                "finish_reason": sample.completion.finish_reason,
            },
            ensure_ascii=False,
        )
        for sample in samples
    ]
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error
