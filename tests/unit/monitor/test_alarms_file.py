"""RUN/alarms.jsonl: what a run writes there, what a resume removes, and what a reader gets from damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megacov.json_text import MAX_JSON_BYTES
from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms_file import ALARMS_NAME, AlarmsFile, read_alarms

FIRST = Alarm("collapse", 4, "seen", "meaning", "knob")
SECOND = Alarm("stalled_phase", 9, "seen", "meaning", "knob")


def write(folder: Path) -> AlarmsFile:
    file = AlarmsFile(folder)
    file.add([FIRST])
    file.add([])
    file.add([replace(FIRST, cleared=7)])
    file.add([SECOND])
    return file


def test_alarms_are_read_back_each_once(tmp_path):
    assert read_alarms(tmp_path) == ([], 0)
    write(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / ALARMS_NAME).read_text().splitlines()]
    assert [(line["kind"], line["step"], line["cleared"]) for line in lines] == [
        ("collapse", 4, None),
        ("collapse", 4, 7),
        ("stalled_phase", 9, None),
    ]
    assert read_alarms(tmp_path) == ([replace(FIRST, cleared=7), SECOND], 0)


@pytest.mark.parametrize(
    ("first_step", "left"),
    [(10, [replace(FIRST, cleared=7), SECOND]), (9, [replace(FIRST, cleared=7)]), (7, [FIRST]), (4, [])],
)
def test_a_resume_removes_what_steps_that_it_repeats_have_raised_and_cleared(first_step, left, tmp_path):
    write(tmp_path)
    file = AlarmsFile(tmp_path, first_step=first_step)
    assert read_alarms(tmp_path) == (left, 0)
    file.add([replace(SECOND, step=12)])
    assert read_alarms(tmp_path) == ([*left, replace(SECOND, step=12)], 0)


def test_a_new_run_begins_without_alarms(tmp_path):
    write(tmp_path)
    AlarmsFile(tmp_path)
    assert read_alarms(tmp_path) == ([], 0)
    assert (tmp_path / ALARMS_NAME).read_bytes() == b"", "a file without a line says that there was no alarm"


def test_damaged_lines_are_counted_and_a_half_written_one_is_not_there_yet(tmp_path):
    write(tmp_path)
    path = tmp_path / ALARMS_NAME
    whole = path.read_bytes()
    deep, wrong = b"[" * 100_000 + b"\n", b'{"kind": 1, "step": "x"}\n'
    path.write_bytes(b"\xff\xfe\n" + deep + whole + wrong + b'{"kind": "coll')
    assert read_alarms(tmp_path) == ([replace(FIRST, cleared=7), SECOND], 3)
    AlarmsFile(tmp_path, first_step=100)
    assert path.read_bytes() == whole


def test_a_file_that_cannot_be_written_warns_once(tmp_path, capsys):
    (tmp_path / ALARMS_NAME).mkdir()
    file = AlarmsFile(tmp_path)
    file.add([FIRST])
    file.add([SECOND])
    warned = capsys.readouterr().err
    assert warned.count("cannot be written (Is a directory)") == 1 and "the run continues" in warned


def test_a_file_beyond_any_limit_of_one_value_is_read_and_kept_whole(tmp_path):
    file = AlarmsFile(tmp_path)
    alarms = [Alarm("collapse", step, "seen " * 10_000, "meaning", "knob") for step in range(1, 351)]
    file.add(alarms)
    assert (tmp_path / ALARMS_NAME).stat().st_size > MAX_JSON_BYTES
    assert read_alarms(tmp_path) == (alarms, 0)
    AlarmsFile(tmp_path, first_step=349)
    assert read_alarms(tmp_path) == (alarms[:348], 0)


def test_a_line_without_an_end_is_damaged_and_hides_no_other(tmp_path):
    write(tmp_path)
    path = tmp_path / ALARMS_NAME
    path.write_bytes(b"x" * (MAX_JSON_BYTES + 9) + b"\n" + path.read_bytes())
    alarms, num_damaged = read_alarms(tmp_path)
    assert alarms == [replace(FIRST, cleared=7), SECOND] and num_damaged > 0
