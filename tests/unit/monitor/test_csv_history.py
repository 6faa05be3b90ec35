"""Tables as other programs write them, and tables with faults."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from megacov.errors import DataError
from megacov.monitor.csv_history import STEP_COLUMNS, read_csv


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def read(path: Path, text: str, **options: object) -> dict[str, dict[int, float]]:
    path.write_text(text, encoding="utf-8")
    history = read_csv(path, **options)  # type: ignore[arg-type]
    assert history.texts == {}
    for series in history.scalars.values():
        assert (series.steps.dtype, series.values.dtype) == (np.int64, np.float64)
        assert (np.diff(series.steps) > 0).all()
    return {
        tag: dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for tag, series in history.scalars.items()
    }


def problems(path: Path) -> tuple[str, ...]:
    return read_csv(path).problems


def test_the_history_of_a_verl_run_as_the_client_of_weights_and_biases_gives_it(table: Path) -> None:
    text = (
        ",_step,actor/entropy,critic/score/mean,training/global_step,val-core/math/acc/mean@32,_timestamp,note\n"
        "0,0,,,,0.125,1.7e9,start\n"
        "1,1,0.75,0.25,1,,1.7e9,\n"
        "2,2,0.5,NaN,2,0.25,1.7e9,\n"
    )
    found = read(table, text)
    assert found["actor/entropy"] == {1: 0.75, 2: 0.5}
    assert found["val-core/math/acc/mean@32"] == {0: 0.125, 2: 0.25}
    assert found["critic/score/mean"][1] == 0.25 and math.isnan(found["critic/score/mean"][2])
    assert found["training/global_step"] == {1: 1.0, 2: 2.0}
    assert "note" not in found and "" not in found and problems(table) == ()
    by_verl = read(table, text, step_column="training/global_step", tags={"critic/score/mean"})
    assert list(by_verl) == ["critic/score/mean"] and by_verl["critic/score/mean"][1] == 0.25
    assert len(read_csv(table, step_column="training/global_step").problems) == 1, "the first row has no such step"


def test_a_panel_of_weights_and_biases(table: Path) -> None:
    text = '"Step","qwen - 7b - actor/entropy","qwen - 7b - actor/entropy__MIN","qwen - 7b - actor/entropy__MAX"\n'
    assert read(table, text + '"10","0.5","0.4","0.6"\n"20","0.25","0.2","0.3"') == {
        "actor/entropy": {10: 0.5, 20: 0.25}
    }
    assert problems(table) == ()
    two = read(table, '"Step","one - actor/entropy","two - actor/entropy"\n"10","0.5",""\n"20","","0.25"\n')
    assert two == {"one - actor/entropy": {10: 0.5}, "two - actor/entropy": {20: 0.25}}


def test_a_tag_as_tensorboard_exports_it(table: Path) -> None:
    found = read(table, "Wall time,Step,Value\n1795900736.5,1,0.5\n1795900737.5,2,0.25\n")
    assert found["Value"] == {1: 0.5, 2: 0.25}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_spreadsheet(table: Path, separator: str) -> None:
    text = "\ufeffEntropy,Iteration ,reward\r\n0.5,1.0,1e-1\r\n\r\n0.25,2,-inf\r\n".replace(",", separator)
    assert read(table, text) == {"Entropy": {1: 0.5, 2: 0.25}, "reward": {1: 0.1, 2: -math.inf}}
    assert problems(table) == ()


def test_the_documented_names_of_the_step_column_come_in_their_order(table: Path) -> None:
    for number, name in enumerate(STEP_COLUMNS):
        others = STEP_COLUMNS[number + 1 :]
        header, cells = ",".join([*others, "a", name.upper()]), ",".join(["7"] * len(others))
        assert read(table, f"{header}\n{cells + ',' if cells else ''}0.5,3\n")["a"] == {3: 0.5}


def test_of_a_step_with_several_rows_the_last_value_counts(table: Path) -> None:
    assert read(table, "step,a,b\n1,1,1\n2,1,1\n3,1,1\n2,2,\n3,2,2\n") == {
        "a": {1: 1.0, 2: 2.0, 3: 2.0},
        "b": {1: 1.0, 2: 1.0, 3: 2.0},
    }


def test_rows_and_cells_that_cannot_be_read_are_named(table: Path) -> None:
    text = "step,a,b\n1,0.5,x\nlast,0.5,1\n3,0.5\n4,0.5,1,1\n5.5,0.5,1\n6,?,2\n7,0.5,\n"
    assert read(table, text) == {"a": {1: 0.5, 7: 0.5}, "b": {6: 2.0}}
    rows, a, b = problems(table)
    assert "4 rows do not count, the first of them row 3:" in rows
    assert "1 cells of a are no numbers, the first is '?'" in a and "1 cells of b are no numbers" in b


@pytest.mark.parametrize("end", ["3,0.12", "3,", "3", "3,0.1250"])
def test_a_last_row_that_may_be_cut_off_does_not_count(table: Path, end: str) -> None:
    assert read(table, f"step,a\n1,0.5\n2,0.25\n{end}") == {"a": {1: 0.5, 2: 0.25}}
    assert [problem.endswith("does not count.") for problem in problems(table)] == [True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff\xfe\x00", "it is not UTF-8"),
        (b"time,a\n1,2\n", r"no column step or _step or .*: name its column of steps, one of time, a\."),
        (b"step,a,a\n1,2,3\n", "several columns named a"),
        (b"step,a\n1," + b"9" * 200_000 + b"\n", "is no table"),
    ],
)
def test_what_is_no_table_is_one_sentence(table: Path, content: bytes, reason: str) -> None:
    table.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_csv(table)


def test_a_file_or_a_column_that_is_not_there_is_one_sentence(table: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_csv(table)
    table.write_text("step,a\n1,2\n")
    with pytest.raises(DataError, match=r"has no column Step: name its column of steps, one of step, a\."):
        read_csv(table, step_column="Step")


def test_a_step_with_several_rows_is_named(table: Path) -> None:
    assert read(table, "step,a,b\n1,0.5,\n1,,2\n2,0.25,3\n") == {"a": {1: 0.5, 2: 0.25}, "b": {1: 2.0, 2: 3.0}}
    assert problems(table) == ()
    assert read(table, "step,a,b\n1,0.5,2\n1,0.75,\n1,1,2\n2,0.25,3\n")["a"] == {1: 1.0, 2: 0.25}
    (problem,) = problems(table)
    assert "a step has several rows with a value, 2 times in column a" in problem
