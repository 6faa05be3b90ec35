"""Rows of JSON lines, JSON lists and Parquet, within bounds, and broken ones by number."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from megacov.data.files import DataFile
from megacov.data.rows import MAX_ROW_BYTES, RowError, _elements, read_rows, schema_of
from megacov.errors import DataError


def rows_of(path: Path, *fields: str) -> list[tuple[int, Any]]:
    """Rows, with the message in place of a RowError."""
    _, rows = read_rows(DataFile(str(path)), fields or None)
    return [(number, str(row) if isinstance(row, RowError) else row) for number, row in rows]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LIST = '[ {"a": "x]\\"[,{"}, {"a": [1, {"b": []}]}\n,{"a": "\\\\"} ]\n'


def test_a_json_list_is_read_as_its_rows_except_from_json_lines(tmp_path: Path) -> None:
    for content in (LIST.encode(), b"\xef\xbb\xbf \n" + LIST.encode()):
        path = written(tmp_path / "a.json", content)
        assert [row for _, row in rows_of(path)] == json.loads(LIST)
        assert read_rows(DataFile(str(path)))[0] == "row"
    lines = written(tmp_path / "a.json", '{"a": 1}\n\n{"a": 2}')
    assert (read_rows(DataFile(str(lines)))[0], rows_of(lines)) == ("line", [(1, {"a": 1}), (3, {"a": 2})])
    assert "is a JSON list" in rows_of(written(tmp_path / "a.jsonl", "[1, 2]"))[0][1]
    assert rows_of(written(tmp_path / "empty.json", " [ ] \n")) == []


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.text() | st.integers() | st.none(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
        )
    ),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
def test_a_list_is_split_into_its_elements_wherever_blocks_end(
    values: list[Any], size: int, indent: int | None
) -> None:
    text = json.dumps(values, indent=indent).encode()
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    assert [each if isinstance(each, RowError) else json.loads(each) for each in _elements(blocks)] == values


@pytest.mark.parametrize(
    ("content", "broken"),
    [
        ('[{"a": 1}, {"a": 2', {2: " is cut off"}),
        ('[{"a": 1}, {"a": 2}', {2: " is cut off"}),
        ('[{"a": 1}, ', {2: " is cut off"}),
        ('[{"a": 1}, {"a": }, {"a": 3}]', {2: " is not JSON"}),
        ('[{"a": 1}, 7, "x"]', {2: " is a JSON int", 3: " is a JSON str"}),
        ('[{"a": 1}] and more', {2: " is not JSON"}),
        ('[{"a": 1},]', {2: " is not JSON"}),
        ("[", {1: " is cut off"}),
    ],
)
def test_what_is_no_list_of_objects_is_named_by_row(content: str, broken: dict[int, str], tmp_path: Path) -> None:
    found = {number: row for number, row in rows_of(written(tmp_path / "a.json", content)) if isinstance(row, str)}
    assert found.keys() == broken.keys()
    assert all(found[number].startswith(broken[number]) for number in broken)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}'.encode("utf-16"), "UTF-16 or UTF-32"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16 or UTF-32"),
        ('{"a": 1}'.encode("utf-32"), "UTF-16 or UTF-32"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
    ],
)
def test_another_encoding_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"a.jsonl is .*{words}"):
        read_rows(DataFile(str(written(tmp_path / "a.jsonl", content))))


def test_a_row_in_latin_1_is_named_and_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '\ufeff{"a": "\xe9"}\n'.encode() + '{"a": "\xe9"}\n'.encode("latin-1"))
    first, (number, message) = rows_of(path)
    assert first == (1, {"a": "\xe9"}) and number == 2
    assert message == " is not JSON (it is not UTF-8 at byte 7); save the file in UTF-8."


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_of_100_megabytes_costs_no_more_memory_than_the_longest_allowed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    start, between, end = (b"[", b",", b"]") if name == "a.json" else (b"", b"", b"")
    with path.open("wb") as file:
        file.write(start + b'{"a": 1}' + between + b'\n{"a": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}' + between + b'\n{"a": 3}' + end)
    tracemalloc.start()
    found = rows_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [number for number, _ in found] == [1, 2, 3]
    assert (found[0][1], found[2][1]) == ({"a": 1}, {"a": 3})
    assert found[1][1] == f" has more than {MAX_ROW_BYTES} bytes, the most that a row may have; shorten or remove it."
    assert peak < 3 * MAX_ROW_BYTES


def test_parquet_gives_nested_values_of_the_columns_that_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [
        {
            "prompt": [{"role": "user", "content": f"{k}="}],
            "reward_model": {"ground_truth": str(k), "style": "rule"},
            "extra": "x" * 10,
            "a.b": k,
        }
        for k in range(5)
    ]
    parquet.write_table(pa.Table.from_pylist(values), path, row_group_size=2)
    assert rows_of(path) == list(enumerate(values, start=1))
    needed = [{name: each[name] for name in ("prompt", "reward_model")} for each in values]
    assert rows_of(path, "prompt", "reward_model.ground_truth") == list(enumerate(needed, start=1))
    assert [row for _, row in rows_of(path, "a.b")] == [{"a.b": k} for k in range(5)]
    assert rows_of(path, "prompt", "gone") == list(enumerate(values, start=1)), "a message can name what is there"
    assert list(schema_of(values[0])) == ["a.b", "extra", "prompt", "reward_model.ground_truth", "reward_model.style"]
    plain = path.rename(tmp_path / "a.data")
    assert len(rows_of(plain)) == 5, "the first bytes show Parquet"


def test_a_large_row_of_parquet_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": ["x", "y" * (MAX_ROW_BYTES + 1), "z"]}), path)
    first, (number, message), last = rows_of(path)
    assert (first, last) == ((1, {"a": "x"}), (3, {"a": "z"}))
    assert number == 2 and message.startswith(" has more than")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([0, 1], pa.timestamp("ns")), "Nanosecond"),
        (pa.array([0, 2**52], pa.timestamp("ms")), "out of range"),
        (pa.array([0, 1], pa.duration("ns")), "Nanosecond"),
    ],
)
def test_a_value_of_parquet_that_python_has_not_is_refused_by_number(
    values: pa.Array, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["x", "y"], "at": values}), path)
    assert [row for _, row in rows_of(path, "prompt")] == [{"prompt": "x"}, {"prompt": "y"}]
    (_, first), (number, message) = rows_of(path)
    assert first["prompt"] == "x" and number == 2
    assert message.startswith(" holds a value that Python cannot hold (") and words in message


def test_equal_names_in_a_struct_of_parquet_are_one_sentence(tmp_path: Path) -> None:
    pair = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["b", "b"])
    parquet.write_table(pa.table({"a": pair}), path := tmp_path / "a.parquet")
    ((number, message),) = rows_of(path)
    assert number == 1 and "duplicate field names" in message


def test_a_long_dictionary_of_parquet_does_not_count_for_every_row(tmp_path: Path) -> None:
    longest = "y" * (MAX_ROW_BYTES + 1)
    parquet.write_table(pa.table({"a": pa.array(["x", longest]).dictionary_encode()}), path := tmp_path / "a.parquet")
    first, (number, message) = rows_of(path)
    assert first == (1, {"a": "x"})
    assert number == 2 and message.startswith(" has more than")


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_short_floats_of_parquet_are_the_decimals_that_were_written(kind: pa.DataType, tmp_path: Path) -> None:
    written = [0.2, 27.0, -1.5, None]
    parquet.write_table(pa.table({"a": pa.array(written, pa.float64()).cast(kind)}), path := tmp_path / "a.parquet")
    assert [row["a"] for _, row in rows_of(path)] == written


@pytest.mark.parametrize("cut", [4, 60])
def test_damaged_parquet_is_one_sentence(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": ["x", "y"]}), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="a.parquet cannot be read") as error:
        rows_of(path)
    assert "\n" not in str(error.value)
