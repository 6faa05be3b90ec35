"""Writes files of prompts, each the same whenever and wherever it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import megacov
from megacov.errors import ConfigError, DataError
from megacov.rewards.reasoning_gym.scorer import create_dataset

_PROGRAM = "megacov.rewards.reasoning_gym.generate"
_ERRORS = {"ConfigError": ConfigError, "DataError": DataError}


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A file of prompts to be written.

    task: name of the task.
    size: rows to make. [rows]
    seed: seed of the rows, at least 0.
    output: the file.
    settings: settings of the task that differ from its defaults.
    """

    task: str
    size: int
    seed: int
    output: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """Rows written, and rows left out because the task's scorer does not take their right answer. [rows]"""

    written: int
    left_out: int


def write_prompt_files(files: Sequence[PromptFile]) -> list[Written]:
    """Write files of prompts in a process of their own, whose hashes of text are the same each time.

    Args:
        files: the files; one that exists is replaced. Files before one that cannot be written are written.

    Returns:
        What was written, for each file.

    Raises:
        ConfigError: a task does not exist or is refused, its settings do not fit, or reasoning-gym is not installed.
        DataError: a file cannot be written, or a task fails to make a row.
    """
    for file in files:
        create_dataset(file.task, file.settings, size=1, seed=file.seed)  # a mistake is found before a process starts
        if not file.output.resolve().parent.is_dir():
            folder, name = file.output.resolve().parent, file.output.name
            raise DataError(f"There is no folder {folder} to write {name} into; make it first.")
    root = str(Path(megacov.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    requests = [{**asdict(file), "output": str(file.output.resolve())} for file in files]
    process = subprocess.run(
        [sys.executable, "-m", _PROGRAM],
        input=json.dumps(requests).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    for answer in answers:
        if "error" in answer:
            raise _ERRORS.get(answer["error"], DataError)(answer["message"])
    if len(answers) < len(files):
        last = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise DataError(
            f"The process that makes rows of {files[len(answers)].task} ended with code {process.returncode}: {last}"
        )
    return [Written(**answer) for answer in answers]
