"""The file of finished problems: resumed, refused, torn, full."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager

import pytest

from megacov.errors import DataError
from megacov.evaluation.records import Answered, RecordFile, Response

IDENTITY = {"format": 1, "model_digest": "a" * 64, "suite_digest": "b" * 64, "seed": 0}


def _answered(index: int, text: str = "4 \u221a") -> Answered:
    return Answered("set", index, "digest", (Response(text, 0.1 + 0.2, None, "stop", 3, -1.0 / 3.0, "4"),))


def test_what_was_added_is_found_again(tmp_path):
    path = tmp_path / "folder" / "responses.jsonl"
    with RecordFile(path, IDENTITY) as records:
        records.add(_answered(1))
        records.add(_answered(0))
    with RecordFile(path, IDENTITY) as records:
        assert records.finished == {("set", 0): _answered(0), ("set", 1): _answered(1)}
        records.add(_answered(2))
    with RecordFile(path, IDENTITY) as records:
        assert len(records.finished) == 3


@pytest.mark.parametrize("num_bytes", [1, 20, 100])
def test_a_line_that_was_being_written_is_dropped(tmp_path, num_bytes):
    path = tmp_path / "responses.jsonl"
    with RecordFile(path, IDENTITY) as records:
        records.add(_answered(0))
        records.add(_answered(1))
    path.write_bytes(path.read_bytes()[:-num_bytes])
    with RecordFile(path, IDENTITY) as records:
        assert list(records.finished) == [("set", 0)]
        records.add(_answered(1))
    with RecordFile(path, IDENTITY) as records:
        assert len(records.finished) == 2


def test_a_file_whose_first_line_was_being_written_begins_anew(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text('{"format": 1, "mod')
    with RecordFile(path, IDENTITY) as records:
        records.add(_answered(0))
    with RecordFile(path, IDENTITY) as records:
        assert len(records.finished) == 1


@pytest.mark.parametrize("key", ["model_digest", "suite_digest", "seed"])
def test_another_evaluation_is_refused_by_name(tmp_path, key):
    path = tmp_path / "responses.jsonl"
    with RecordFile(path, IDENTITY):
        pass
    with pytest.raises(DataError, match=rf"is of an evaluation with another {key} \(.* there, 7 now\)"):
        RecordFile(path, IDENTITY | {key: 7})


def _line(**response: object) -> str:
    good = {"text": "x", "reward": 0, "failure": None, "finish_reason": "stop", "num_tokens": 1, "log_prob": -1.0}
    responses = [good | {"answer": None} | response]
    return json.dumps({"set_name": "set", "index": 0, "digest": "d", "responses": responses})


def test_a_line_that_another_program_wrote_is_read(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text(f"{json.dumps(IDENTITY)}\n{_line(versions=[3, 4])}\n")
    with RecordFile(path, IDENTITY) as records:
        assert records.finished["set", 0].responses[0].versions == (3, 4)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"set_name": "set"}',
        '{"responses": [{"text": "x"}]}',
        '{"a": NaN}',
        _line(reward="1"),
        _line(answer=[1]),
        _line(finish_reason="bored"),
        _line().replace('"index": 0', '"index": [0]'),
    ],
)
def test_a_damaged_line_is_refused_by_number(tmp_path, line):
    path = tmp_path / "responses.jsonl"
    path.write_text(f"{json.dumps(IDENTITY)}\n{line}\n")
    with pytest.raises(DataError, match="line 2 is damaged"):
        RecordFile(path, IDENTITY)


def test_one_evaluation_at_a_time(tmp_path):
    path = tmp_path / "responses.jsonl"
    with RecordFile(path, IDENTITY), pytest.raises(DataError, match="another evaluation writes to"):
        RecordFile(path, IDENTITY)
    with RecordFile(path, IDENTITY):
        pass


@contextmanager
def _files_of_at_most(num_bytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    path = tmp_path / "responses.jsonl"
    with RecordFile(path, IDENTITY) as records:
        records.add(_answered(0))
        with _files_of_at_most(path.stat().st_size + 50):
            with pytest.raises(DataError, match="cannot be written .*free space there"):
                records.add(_answered(1, "x" * 10_000))
            assert list(records.finished) == [("set", 0)]
    with RecordFile(path, IDENTITY) as records:
        assert list(records.finished) == [("set", 0)]


def test_a_disk_that_stays_full_gives_one_sentence(tmp_path):
    path = tmp_path / "responses.jsonl"
    with RecordFile(path, IDENTITY):
        pass
    with (
        _files_of_at_most(path.stat().st_size + 50),
        pytest.raises(DataError, match="cannot be written"),
        RecordFile(path, IDENTITY) as records,
    ):
        records.add(_answered(0, "x" * 500))
    with RecordFile(path, IDENTITY) as records:
        assert not records.finished


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "responses.jsonl", IDENTITY)
