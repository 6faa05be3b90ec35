"""Files of prompts: what they hold, and what is refused before one is written."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError, DataError
from megacov.rewards.reasoning_gym.scorer import create_dataset
from megacov.rewards.reasoning_gym.tasks import REFUSED, all_tasks
from megacov.rewards.reasoning_gym.write import PromptFile, write_prompt_files
from tests.support.command import run

ROOT = Path(__file__).parents[4]
DOCS = ROOT / "docs" / "reasoning_gym.md"


def test_the_command_writes_rows_with_all_that_the_verifier_needs(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    options = ("--size", "3", "--seed", "5", "--set", "min_terms=2", "--set", "max_terms=2")
    ended = run("make-prompts", "chain_sum", "--output", str(file), *options, log=tmp_path / "log")
    assert ended.code == 0, ended.output
    assert ended.output.strip() == f"{file}: 3 prompts of chain_sum"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert {row["seed"] for row in rows} == {5}
    for row in rows:
        assert row["task"] == "chain_sum"
        assert row["settings"] == {"min_terms": 2, "max_terms": 2}
        terms = [int(word) for word in row["prompt"].replace("- ", "-").split() if word.lstrip("-").isdigit()]
        assert len(terms) == 2 or " - " in row["prompt"]


def test_rows_whose_right_answer_is_not_taken_are_left_out_and_counted(tmp_path: Path) -> None:
    # The right answer of some rows of ab is an empty text, and blank responses are wrong.
    (written,) = write_prompt_files([PromptFile("ab", 100, 7, tmp_path / "rows.jsonl")])
    assert written.left_out > 0
    assert written.written == 100 - written.left_out == len((tmp_path / "rows.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("chain_sm", {}, "has no task 'chain_sm': did you mean chain_sum"),
        ("chain_sum", {"terms": 2}, "has no setting 'terms'; it has allow_negation"),
        ("chain_sum", {"max_terms": 0}, "do not fit the task chain_sum: max_terms must be >= min_terms."),
        ("chain_sum", {"max_terms": "many"}, "do not fit the task chain_sum: '>=' not supported"),
    ],
)
def test_mistakes_are_found_before_a_file_is_written(
    task: str, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_prompt_files([PromptFile(task, 1, 0, tmp_path / "rows.jsonl", settings)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("chain_sum", "--set", "max_terms"), "--set max_terms does not have the form KEY=VALUE."),
        (("puzzle24",), "The reasoning-gym task puzzle24 is refused: its scorer gives 1 to any four numbers"),
    ],
)
def test_mistakes_end_in_one_sentence(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    ended = run("make-prompts", *options, "--output", str(file), "--size", "1", log=tmp_path / "log")
    assert ended.code == ConfigError.exit_code
    assert message in ended.output
    assert "Traceback" not in ended.output
    assert not file.exists()


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder .*missing to write rows.jsonl into; make it first"):
        write_prompt_files([PromptFile("chain_sum", 1, 0, tmp_path / "missing" / "rows.jsonl")])


def test_the_docs_list_every_task() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for task, reason in REFUSED.items():
        assert f"| `{task}` | {reason} |" in text
    accepted = ", ".join(f"`{task}`" for task in all_tasks() if task not in REFUSED)
    assert accepted in " ".join(text.split())


def test_the_commands_in_docs_and_configurations_fit_their_tasks() -> None:
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "yaml_configs").rglob("*.yaml")]
    commands = [
        line for file in files for line in re.findall("megacov make-prompts ([^`\\n]*--[^`\\n]*)", file.read_text())
    ]
    assert len(commands) >= 3
    for command in commands:
        task, *options = shlex.split(command)
        settings = [value for option, value in pairwise(options) if option == "--set"]
        parsed = {
            key: parse_yaml(value, source=command) for key, _, value in (each.partition("=") for each in settings)
        }
        create_dataset(task, parsed, size=1, seed=0)
