"""GSM8K, MATH, AIME and AMC as their authors publish them. MEGACOV_DATA names the folder that holds them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from megacov.config import load_config
from megacov.data.columns import Columns
from megacov.data.files import DataFile
from megacov.data.overlap import EvaluationSet, words_of
from megacov.data.prompts import Record, read_records
from megacov.data.rows import read_rows
from megacov.data.survey import read_evaluation, survey
from megacov.errors import DataError
from megacov.trainer.prompts import columns_of

DATA = Path(os.environ.get("MEGACOV_DATA", Path(__file__).parents[4] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is missing; MEGACOV_DATA names the folder")


def preset(name: str, folder: Path) -> Columns:
    run = folder / "run.yaml"
    files = [Path("yaml_configs", *parts).resolve() for parts in (("runs", "tiny_grpo.yaml"), ("data", f"{name}.yaml"))]
    run.write_text(f"extends: [{', '.join(map(str, files))}]\n")
    return columns_of(load_config(run).sources[0])


def records(name: str, columns: Columns, *, keep_rows: bool = False) -> list[Record]:
    return list(read_records(DataFile(str(DATA / name)), columns, keep_rows=keep_rows)[1])


@pytest.mark.parametrize(("name", "count", "first"), [("train", 7473, "72"), ("test", 1319, "18")])
def test_gsm8k_by_its_preset(name: str, count: int, first: str, tmp_path: Path) -> None:
    found = records(f"gsm8k/{name}.jsonl", preset("gsm8k", tmp_path))
    assert (len(found), found[0].answer) == (count, first)
    assert all(float(each.answer) == int(float(each.answer)) or "." in each.answer for each in found), "all are numbers"


def test_the_box_of_every_solution_of_math_500_holds_its_answer(tmp_path: Path) -> None:
    found = records("math500/test.jsonl", preset("math", tmp_path), keep_rows=True)
    assert len(found) == 500
    differ = [each.number for each in found if each.row is not None and each.answer != each.row["answer"].strip()]
    assert differ == []


@pytest.mark.parametrize(
    ("name", "answer_field", "count", "first"),
    [("aime24", "answer", 30, "204"), ("aime25", "expected_answer", 30, "70"), ("amc23", "answer", 40, "27.0")],
)
def test_competitions(name: str, answer_field: str, count: int, first: str) -> None:
    found = records(f"eval/{name}.jsonl", Columns("problem", answer_field))
    assert (len(found), found[0].answer) == (count, first)


def test_the_training_set_of_math_is_a_json_list_with_two_rows_without_an_answer() -> None:
    path = DATA / "math_train" / "math.json"
    with pytest.raises(
        DataError, match=r"math\.json, row 887: the answer .* is a NoneType; .*; one more row is broken"
    ):
        records("math_train/math.json", Columns("problem"))
    found = survey(path, Columns("problem"), encoder=None, against=(), most=5)
    assert (found.num_good, found.num_broken, found.num_repeats) == (7472, 2, 0)
    assert [each.partition(":")[0] for each in found.faults] == [f"{path}, row 887", f"{path}, row 1010"]


def test_math_500_in_the_training_set_of_math() -> None:
    against = read_evaluation(str(DATA / "math500" / "test.jsonl"), Columns("problem"))
    survey(DATA / "math_train" / "math.json", Columns("problem"), encoder=None, against=[against], most=0)
    assert against.exact == {}
    # The same by sets of all runs, without an index.
    _, rows = read_rows(DataFile(str(DATA / "math_train" / "math.json")))
    held = {
        tuple(words[start : start + 13])
        for _, row in rows
        if isinstance(row, dict)
        for words in [words_of(row["problem"])]
        for start in range(len(words) - 12)
        if row["answer"] is not None
    }
    expected = {
        place
        for place, problem in enumerate(against.problems)
        for words in [words_of(problem)]
        if any(tuple(words[start : start + 13]) in held for start in range(len(words) - 12))
    }
    assert set(against.shared) == expected and len(expected) > 10


def test_a_file_in_the_layout_of_verl_is_read_by_its_preset(tmp_path: Path) -> None:
    problems = records("eval/aime24.jsonl", Columns("problem"))
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": each.messages,
            "ability": "MATH",
            "reward_model": {"ground_truth": each.answer, "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": str(each.number)},
        }
        for each in problems
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "dapo.parquet")
    file = DataFile(str(tmp_path / "dapo.parquet"))
    _, found = read_records(file, preset("dapo_math", tmp_path), keep_rows=True)
    kept = list(found)
    assert [(each.messages, each.answer) for each in kept] == [(each.messages, each.answer) for each in problems]
    assert [each.row for each in kept] == rows
    assert EvaluationSet("a", [each.messages[0]["content"] for each in kept]).problems[0].startswith("Every morning")
