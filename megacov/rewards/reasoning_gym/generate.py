"""The program that writes prompt files; `write.py` starts it.

Some tasks order their rows by Python's hashes of text, and others draw from the generators of the whole process. Here
PYTHONHASHSEED is 0 and those generators are seeded for each file, so that equal requests write equal files.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from megacov.errors import DataError, MegacovError
from megacov.files import write_atomically
from megacov.launch.output import keep_output
from megacov.rewards.reasoning_gym.rows import encode, read_row
from megacov.rewards.reasoning_gym.scorer import check_right_answer, create_dataset
from megacov.rewards.reasoning_gym.tasks import ANSWER_IN_METADATA, installed_version

_LONGEST_ROW_S = 120


def main() -> None:
    """Read requests as JSON from standard input, write their files, and answer with one line of JSON for each."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # tasks print
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _give_up)
    with os.fdopen(answers, "w", encoding="utf-8") as output:
        for request in json.load(sys.stdin):
            try:
                answer = _write(**request)
            except MegacovError as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            print(json.dumps(answer), file=output, flush=True)


def _write(*, task: str, size: int, seed: int, settings: dict[str, Any], output: str) -> dict[str, int | str]:
    dataset = create_dataset(task, settings, size=size, seed=seed)
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    lines = []
    for index in range(size):
        row = _make_row(dataset, index, task=task, seed=seed, settings=settings)
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        try:
            check_right_answer(row["answer"], read_row(json.loads(text)))
        except DataError:
            continue  # counted as left out
        lines.append(text + "\n")
    if not lines:
        raise DataError(
            f"reasoning-gym made no row of {task} whose right answer its scorer takes: change the settings."
        )
    try:
        write_atomically(Path(output), "".join(lines))
    except OSError as error:
        raise DataError(f"Cannot write {output} ({error.strerror}): give another file, or make room.") from error
    return {"written": len(lines), "left_out": size - len(lines)}


def _make_row(dataset: Any, index: int, *, task: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    signal.alarm(_LONGEST_ROW_S)
    try:
        entry = dataset[index]
        metadata = encode(entry["metadata"])
        answer = entry["answer"]
        if task in ANSWER_IN_METADATA:
            answer = json.dumps(entry["metadata"][ANSWER_IN_METADATA[task]])
    except Exception as error:
        raise DataError(f"reasoning-gym raised {type(error).__name__} in row {index} of {task}: {error}") from error
    finally:
        signal.alarm(0)
    return {
        "prompt": entry["question"],
        "answer": answer,
        "task": task,
        "settings": settings,
        "seed": seed,
        "index": index,
        "version": installed_version(),
        "metadata": metadata,
    }


def _give_up(*_: object) -> NoReturn:
    raise TimeoutError(f"it took longer than {_LONGEST_ROW_S} s; change the settings of the task.")


if __name__ == "__main__":
    keep_output()
    main()
