"""Every task of reasoning-gym, through the registry: right answers score 1, junk scores 0, files are always equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacov.rewards.reasoning_gym.tasks import REFUSED, all_tasks
from megacov.rewards.reasoning_gym.write import PromptFile, write_prompt_files
from megacov.rewards.registry import find_verifier

# Among them are tasks whose rows depend on Python's hashes or on global generators, whose entries hold tuples and
# fractions, and whose scorers fail on junk, run Python, or give partial credit to an empty text.
QUICK = (
    "arc_1d",
    "chain_sum",
    "countdown",
    "graph_color",
    "gsm_symbolic",
    "isomorphic_strings",
    "list_functions",
    "palindrome_generation",
    "prime_factorization",
    "ransom_note",
    "rearc",
    "spell_backward",
    "string_insertion",
)
JUNK = (
    "",
    " \n",
    "zzz",
    "I do not know the answer to this.",
    "}{)(\\[\x00",
    "x" * 2000,
    "nan",
    "<answer></answer>",
    "len('junk')",
)


def judged(rows: list[dict], text: str) -> list[float]:
    """The verdict on one text, or on each row's own answer in place of {gold}, for each row."""
    verifier = find_verifier("reasoning_gym")
    return [verifier(text.replace("{gold}", row["answer"]), row["answer"], row=row) for row in rows]


def check_tasks(tasks: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, *, size: int) -> None:
    made = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        # In the other order the second time: a file must not depend on those written before it.
        ordered = tasks if hash_seed == "1" else tasks[::-1]
        files = [PromptFile(task, size, 3, folder / f"{task}_{hash_seed}.jsonl") for task in ordered]
        made.append(write_prompt_files(files))
    assert sum(written.left_out for written in made[0]) <= 0.02 * size * len(tasks)
    problems = []
    for task in tasks:
        first, second = ((folder / f"{task}_{hash_seed}.jsonl").read_bytes() for hash_seed in ("1", "2"))
        if first != second:
            problems.append(f"{task}: two files differ")
        rows = [json.loads(line) for line in first.splitlines()]
        for text in ("{gold}", " {gold}\n", "\t\n{gold} "):
            if set(judged(rows, text)) != {1.0}:
                problems.append(f"{task}: {text!r} scores {judged(rows, text)}")
        for junk in JUNK:
            if set(judged(rows, junk)) != {0.0}:
                problems.append(f"{task}: {junk!r} scores {judged(rows, junk)}")
    assert problems == []


def test_some_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tasks(QUICK, tmp_path, monkeypatch, size=8)


@pytest.mark.slow
def test_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tuple(task for task in all_tasks() if task not in REFUSED)
    assert len(tasks) == 106 - len(REFUSED)
    check_tasks(tasks, tmp_path, monkeypatch, size=20)
