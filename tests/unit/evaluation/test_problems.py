"""Files of problems: where they are looked for, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.data import load_tokenizer
from megacov.errors import ConfigError, DataError
from megacov.evaluation.problems import find_sets, read_problems

MODEL = Path("examples/tiny_policy")
SUITE = SuiteSection(
    name="suite",
    sets=tuple(EvaluationSet(name=name, path=f"{name}.jsonl", verifier="sum_pairs") for name in ("a", "b", "c")),
)
PLAIN = EvaluationSet(name="a", path="a.jsonl", prompt_field="prompt", verifier="sum_pairs", chat_template=False)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A data folder with files of sets a and b, and a working folder with one of set b."""
    folder, here = tmp_path / "data", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    for path in (folder / "a.jsonl", folder / "b.jsonl", here / "b.jsonl"):
        path.write_text("")
    monkeypatch.chdir(here)
    return folder


def test_the_data_folder_comes_before_the_working_folder(data):
    found = find_sets(SUITE, ["a", "b"], data, allow_missing=False)
    assert [(each.name, path) for each, path in found.sets] == [("a", data / "a.jsonl"), ("b", data / "b.jsonl")]
    found = find_sets(SUITE, ["b"], None, allow_missing=False)
    assert [path for _, path in found.sets] == [Path("b.jsonl")]


def test_sets_are_in_the_order_of_the_suite(data):
    assert [each.name for each, _ in find_sets(SUITE, ["b", "a"], data, allow_missing=False).sets] == ["a", "b"]


def test_a_missing_file_is_named_and_left_out_only_if_that_is_allowed(data):
    with pytest.raises(DataError, match=r"the set c needs the file c.jsonl, which is neither in .*--allow-missing"):
        find_sets(SUITE, [], data, allow_missing=False)
    found = find_sets(SUITE, [], data, allow_missing=True)
    assert [each.name for each, _ in found.sets] == ["a", "b"]
    assert found.missing == ("c",)


def test_all_files_missing_is_an_error_in_any_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"the set a needs .*neither --data nor MEGACOV_DATA.*\(nor are those of b and c\)"
    ):
        find_sets(SUITE, [], None, allow_missing=True)


def test_a_set_that_the_suite_does_not_have(data):
    with pytest.raises(ConfigError, match="--only is d, and the suite suite has a, b and c"):
        find_sets(SUITE, ["a", "d"], data, allow_missing=True)


def _read(path: Path, **options):
    tokenizer = load_tokenizer(MODEL, vocab_size=16)
    return read_problems(PLAIN, path, tokenizer, **{"vocab_size": 16, "keep_rows": False} | options)


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_problems_are_in_the_order_of_the_file(tmp_path):
    path = _write(tmp_path / "a.jsonl", *({"prompt": f"{i}=", "answer": str(i)} for i in range(10, 15)))
    assert [each.answer for each in _read(path)] == ["10", "11", "12", "13", "14"]
    assert _read(path, keep_rows=True)[0].row == {"prompt": "10=", "answer": "10"}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "the set a: .*"),
        ([{"prompt": "10="}], "the set a: .* has no field 'answer'"),
        ([{"prompt": "1" * 5000, "answer": "1"}], "the set a: .*4096 tokens"),
    ],
)
def test_broken_files_name_the_set(tmp_path, rows, complaint):
    with pytest.raises(DataError, match=complaint):
        _read(_write(tmp_path / "a.jsonl", *rows))


@pytest.mark.skipif(
    not Path(os.environ.get("MEGACOV_DATA", "../shared/data"), "eval").is_dir(), reason="no data folder (MEGACOV_DATA)"
)
def test_row_counts_of_the_papers_files():
    """The counts that docs/evaluation.md gives."""
    data = Path(os.environ.get("MEGACOV_DATA", "../shared/data"))
    counts = {"eval/aime24.jsonl": 30, "eval/aime25.jsonl": 30, "eval/amc23.jsonl": 40, "math500/test.jsonl": 500}
    found = {name: len((data / name).read_text().splitlines()) for name in counts}
    assert found == counts
