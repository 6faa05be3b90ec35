"""RUN/status.json: what a run writes there, and what a reader gets from whole, damaged and foreign files."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from megacov.errors import DataError
from megacov.monitor.status_file import NUM_STEPS, STATUS_NAME, StatusFile, read_logged_steps


def write(folder: Path, steps: range, reward: float, *, first_step: int | None = None) -> StatusFile:
    """The file of a run that logs some steps."""
    status = StatusFile(folder, name="tiny", num_steps=20, first_step=first_step)
    for step in steps:
        metrics = {"reward/mean": reward + step, "entropy/token_mean": 2.0, "perf/step_s": 1.0}
        status.add_step(step, metrics)
    return status


def rewards(folder: Path) -> list[tuple[int, float]]:
    return [(each.step, each.values["reward/mean"]) for each in read_logged_steps(folder) or ()]


def test_the_newest_steps_are_kept_with_the_values_that_status_shows(tmp_path):
    before = time.time()
    write(tmp_path, range(1, 131), 0.5)
    steps = read_logged_steps(tmp_path)
    assert steps is not None and [each.step for each in steps] == list(range(131 - NUM_STEPS, 131))
    assert steps[-1].values == {"reward/mean": 130.5, "entropy/token_mean": 2.0}
    times = [before, *(each.time for each in steps), time.time()]
    assert times == sorted(times)


def test_the_file_is_plain_json_with_name_and_total(tmp_path):
    status = write(tmp_path, range(0), 0.0)
    status.add_step(1, {"reward/mean": math.inf, "entropy/token_mean": math.nan})

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / STATUS_NAME).read_text(), parse_constant=refuse)
    assert (content["name"], content["num_steps"], content["logged"][0]["step"]) == ("tiny", 20, 1)
    (step,) = read_logged_steps(tmp_path) or ()
    assert step.values["reward/mean"] == math.inf and math.isnan(step.values["entropy/token_mean"])


def test_a_run_may_have_logged_nothing(tmp_path):
    assert read_logged_steps(tmp_path) is None
    write(tmp_path, range(0), 0.0)
    assert read_logged_steps(tmp_path) == ()


def test_a_resumed_run_replaces_the_steps_that_it_repeats(tmp_path):
    write(tmp_path, range(1, 7), 0.0)
    write(tmp_path, range(4, 5), 100.0, first_step=4)
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 104.0)]
    # The steps that are to be repeated are hidden before the first of them is logged.
    write(tmp_path, range(0), 0.0, first_step=3)
    assert rewards(tmp_path) == [(1, 1.0), (2, 2.0)]
    # A new run in the same folder keeps nothing.
    write(tmp_path, range(0), 0.0)
    assert rewards(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"format": 1, "logged": [{"st', "is no whole JSON"),
        ("\0" * 64, "is no whole JSON"),
        ('{"format": 2, "steps": []}', "it has format 2, and this version of megacov reads format 1"),
        ('{"logged": []}', "it holds no list of logged steps"),
        ("[]", "it holds no list of logged steps"),
        ('{"format": 1, "logged": [{"step": "1", "time": 0, "values": {}}]}', "is not step, time and values"),
        ('{"format": 1, "logged": [{"step": 1, "time": 0, "values": {"a": "b"}}]}', "is malformed: could not convert"),
        ('{"format": 1, "logged": [{"step": 1, "time": 0, "values": {"a": null}}]}', "is malformed: float"),
    ],
)
def test_a_file_that_cannot_be_used_ends_in_a_sentence(tmp_path, content, words):
    (tmp_path / STATUS_NAME).write_text(content)
    with pytest.raises(DataError) as caught:
        read_logged_steps(tmp_path)
    assert words in str(caught.value) and str(caught.value).startswith(str(tmp_path / STATUS_NAME))
    # A resumed run writes it anew.
    write(tmp_path, range(1, 2), 0.0, first_step=1)
    assert rewards(tmp_path) == [(1, 1.0)]


def test_a_full_disk_is_one_warning_until_there_is_space_again(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    status = write(folder, range(1, 2), 0.0)
    fresh = folder / f"tmp_{STATUS_NAME}"
    for step in (2, 3):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to("/dev/full")
        status.add_step(step, {"reward/mean": float(step)})
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{folder / STATUS_NAME} cannot be written (No space left on device): the run continues" in warning
    assert rewards(folder) == [(1, 1.0)]
    fresh.unlink(missing_ok=True)
    status.add_step(4, {"reward/mean": 4.0})
    assert rewards(folder) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)] and capsys.readouterr().err == ""
    fresh.symlink_to("/dev/full")
    status.add_step(5, {})
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_is_replaced_and_never_written_in_place(tmp_path):
    status = write(tmp_path, range(1, 2), 0.0)
    with (tmp_path / STATUS_NAME).open() as opened:
        status.add_step(2, {"reward/mean": 0.0})
        assert len(json.load(opened)["logged"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_NAME]
