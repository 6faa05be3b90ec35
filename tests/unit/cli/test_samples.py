"""`megacov samples` where there is no terminal: text, JSON, and what they leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.main import app
from megacov.errors import ConfigError, DataError
from tests.support.sample_files import old_line, sample_line, write_step


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in range(1, 13):
        write_step(tmp_path, step, sample_line(reward=step / 12, finish_reason="length" if step == 2 else "stop"))
    return tmp_path


def output_of(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["samples", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def steps_in(output: str) -> list[int]:
    return [int(line.split()[1]) for line in output.splitlines() if line.startswith("step ")]


def test_text_has_markers_and_a_legend_and_no_control_characters(run):
    output = output_of(run, "--limit", 1)
    assert output.splitlines() == [
        "step 12 (12 of 12)  sample 1 of 1  reward 1  5 tokens",
        "ended by itself, row 0 of the batch, weights 3",
        "entropy [nats], fixed:  to 0.05 [1|>0.05][2|>0.2][3|>0.7][4|>1.5] [*|selected]",
        "prompt",
        "What is 6*7?",
        "response",
        "six[2| times][2| seven][3| is][3*| 42]",
        "answer that the verifier has",
        "42",
    ]
    assert "six[-1| times][2| seven][-2| is][2*| 42]" in output_of(run, "--limit", 1, "--overlay", "covariance")
    assert "six times seven[1| is][2*| 42]" in output_of(run, "--limit", 1, "--quantiles", "--overlay", "entropy")
    coloured = output_of(run, "--limit", 1, "--color", "always", "--overlay", "selected")
    assert "six times seven is" in coloured.replace("\x1b[2msix\x1b[0m", "six") and "\x1b[38;5;" in coloured


def test_options_choose_samples_the_newest_step_first(run):
    assert steps_in(output_of(run)) == [*range(12, 4, -1)]
    assert steps_in(output_of(run, "--step", "3:5")) == [5, 4, 3]
    assert steps_in(output_of(run, "--reward", ":0.3", "--limit", 2)) == [3, 2]
    assert steps_in(output_of(run, "--truncated")) == [2]
    assert steps_in(output_of(run, "--limit", 0)) == []


def test_json_has_all_of_them_as_in_their_files(run):
    write_step(run, 13, sample_line(("\x7f\x9b\u202e", "\n"), source="a", failure="timeout"), old_line("old"))
    output = output_of(run, "--json")
    assert output.isascii() and "\x7f" not in output and "\x1b" not in output
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["step"] for line in lines] == [13, 13, *range(12, 0, -1)]
    written = json.loads((run / "samples" / "step_000013.jsonl").read_text().splitlines()[0])
    written["covariance"] = [value + 0.0 for value in written["covariance"]]
    assert lines[0] == {"step": 13} | written
    assert lines[1]["response"] == "old" and "entropy" not in lines[1]


def test_an_old_run_is_plain_text_and_says_so(tmp_path):
    write_step(tmp_path, 1, old_line("just \x1b[31mtext\nof two lines"))
    output = output_of(tmp_path)
    assert "Plain text: no values of its tokens" in output
    assert "\njust \\x1b[31mtext\nof two lines\n" in output


def test_a_user_s_mistakes_are_named(run, tmp_path):
    with pytest.raises(ConfigError, match="--reward is 'low'"):
        output_of(run, "--reward", "low")
    with pytest.raises(DataError, match="No sample of .* passes source=b: ask for less"):
        output_of(run, "--source", "b")
    with pytest.raises(DataError, match="is not a folder: give the folder of a run"):
        output_of(tmp_path / "nowhere")
