"""RUN/samples is read whatever it holds, and its folder keeps within its limit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megacov.errors import DataError
from megacov.monitor.samples import TOKEN_FIELDS, ShownSample, read_samples, sample_files
from megacov.monitor.samples_folder import SamplesFolder

PLAIN = {"prompt": "1+1=", "response": "2", "answer": "2", "reward": 1, "notable": ["longest"], "tokens": 2}
TOKENS = {
    "token_texts": ["2", "<eos>"],
    "log_probs": [-1, None],
    "entropy": [0.5, 0.25],
    "covariance": [None, 1e-3],
    "mismatch": [0, -0.5],
    "selected": [0, 1],
    "kept": [0, 1],
}


def _write(run: Path, step: int, *lines: object) -> Path:
    path = run / "samples" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else f"{json.dumps(line)}\n" for line in lines))
    return path


def _read(run: Path, steps: list[int] | None = None) -> tuple[list[ShownSample], list[str]]:
    problems: list[str] = []
    return list(read_samples(run, steps, on_problem=problems.append)), problems


def test_values_come_back_with_nan_where_they_are_unknown(tmp_path: Path) -> None:
    _write(tmp_path, 12, PLAIN | TOKENS | {"sample": 3, "versions": ["10", "11"], "staleness": 1})
    (sample,), problems = _read(tmp_path)
    assert problems == []
    assert (sample.step, sample.sample, sample.reward, sample.notable) == (12, 3, 1.0, ("longest",))
    assert (sample.versions, sample.staleness, sample.source) == (("10", "11"), 1, "")
    tokens = sample.tokens
    assert tokens is not None and tokens.texts == ("2", "<eos>")
    assert tokens.log_probs[0] == -1 and math.isnan(tokens.log_probs[1]) and math.isnan(tokens.covariance[0])
    assert tokens.selected.tolist() == tokens.kept.tolist() == [False, True]


def test_texts_alone_are_read_and_counted(tmp_path: Path) -> None:
    _write(tmp_path, 2, PLAIN, PLAIN | TOKENS)
    _write(tmp_path, 1, PLAIN | TOKENS)
    _write(tmp_path, 1_000_000, PLAIN)
    samples, problems = _read(tmp_path)
    assert [(sample.step, sample.tokens is None) for sample in samples] == [
        (1, False),
        (2, True),
        (2, False),
        (1_000_000, True),
    ]
    assert problems == ["2 responses, the first in step 2, have no values of their tokens."]
    assert [sample.step for sample in _read(tmp_path, [2])[0]] == [2, 2]
    assert _read(tmp_path / "nowhere") == ([], [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (json.dumps(PLAIN | TOKENS)[:90], "cannot be read: Unterminated string"),
        ("[1]\n", "cannot be read: it is no JSON object."),
        (PLAIN | {"reward": "much"}, "cannot be read: its reward is 'much'."),
        (PLAIN | {"reward": True}, "cannot be read: its reward is 'True'."),
        ({"prompt": "p", "reward": 0}, "cannot be read: its response is 'None'."),
        ('{"prompt": "\ud83d"}\n'.encode("unicode_escape").decode(), "cannot be read: "),
        ("[" * 5000 + "\n", "cannot be read: "),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_passed_over(tmp_path: Path, line: Any, problem: str) -> None:
    path = _write(tmp_path, 1, PLAIN | TOKENS, line)
    samples, problems = _read(tmp_path)
    assert len(samples) == len(problems) == 1
    assert problems[0].startswith(f"{path}, line 2 {problem}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"kept": [1]},
            "there are 2 token_texts, 2 log_probs, 2 entropy, 2 covariance, 2 mismatch, 2 selected, 1 kept.",
        ),
        ({"mismatch": None}, "2 covariance, no mismatch"),
        ({"entropy": [[1], [2]]}, "one is no number."),
        ({"entropy": ["1", "2"]}, "one is no number."),
        ({"token_texts": [1, 2]}, "token_texts holds something that is no text."),
    ],
)
def test_values_that_do_not_fit_together_are_left_out(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    _write(tmp_path, 1, PLAIN | TOKENS | change)
    samples, problems = _read(tmp_path)
    assert [sample.tokens for sample in samples] == [None]
    assert len(problems) == 2 and problem in problems[0]


def _responses(length: int) -> list[dict[str, Any]]:
    return [PLAIN | {"response": "x" * length} | {name: values * length for name, values in TOKENS.items()}] * 2


def test_the_oldest_steps_lose_values_and_then_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = 12_000
    folder = SamplesFolder(tmp_path, limit_bytes=limit)
    with_values, sizes = [], []
    for step in range(1, 41):
        folder.write(_responses(20), step=step)
        samples = _read(tmp_path)[0]
        with_values.append({sample.step for sample in samples if sample.tokens is not None})
        sizes.append(sum(path.stat().st_size for path in sample_files(tmp_path).values()))
        if step == 6:
            assert folder.num_thinned > 0
            assert {sample.step for sample in samples} == set(range(1, 7)), "texts of all steps are still there"
    assert max(sizes) <= limit and sizes[-1] > 0.8 * limit
    for step, kept in enumerate(with_values, start=1):
        assert kept and kept == set(range(min(kept), step + 1)), "those with values are the newest"
    steps = list(sample_files(tmp_path))
    assert steps == list(range(steps[0], 41)) and steps[0] > 1
    assert folder.num_thinned == 40 - len(with_values[-1])
    assert capsys.readouterr().err.count("has reached monitor.samples_mb") == 1
    # A process that resumes the run finds what the first one has left, and repeats a step.
    again = SamplesFolder(tmp_path, limit_bytes=limit)
    for step in (31, 32):
        again.write(_responses(20), step=step)
        assert next(sample for sample in _read(tmp_path, [step])[0]).tokens is not None
        assert sum(path.stat().st_size for path in sample_files(tmp_path).values()) <= limit


def test_files_that_somebody_deletes_make_room(tmp_path: Path) -> None:
    folder = SamplesFolder(tmp_path, limit_bytes=3_000)
    folder.write(_responses(20), step=1)
    folder.write(_responses(1), step=2)
    for step in (1, 2):
        (tmp_path / "samples" / f"step_{step:06d}.jsonl").unlink()
    folder.write(_responses(60), step=3)  # alone beyond the limit, so that every older step has to go
    assert list(sample_files(tmp_path)) == [3]
    folder.write(_responses(1), step=4)
    assert list(sample_files(tmp_path)) == [3, 4]


class _Counted(dict[int, int]):
    """Sizes that count how often somebody goes through all of them."""

    passes = 0

    def values(self) -> Any:
        self.passes += 1
        return super().values()


def test_thinning_adds_up_all_sizes_once_however_many_steps_there_are(tmp_path: Path) -> None:
    folder = SamplesFolder(tmp_path, limit_bytes=3_000)
    for step in range(1, 4):
        folder.write(_responses(5), step=step)
    folder._sizes = sizes = _Counted(folder._sizes or {})
    folder.write(_responses(60), step=4)
    assert list(sample_files(tmp_path)) == [4] and sizes.passes == 1


def test_the_newest_step_stays_whole_beyond_the_limit(tmp_path: Path) -> None:
    folder = SamplesFolder(tmp_path, limit_bytes=100)
    for step in (1, 2):
        folder.write(_responses(20), step=step)
        assert [(sample.step, sample.tokens is None) for sample in _read(tmp_path)[0]] == [(step, False)] * 2


def test_a_limit_that_is_reached_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SamplesFolder(tmp_path, limit_bytes=10)
    for step in range(1, 4):
        folder.write(_responses(2), step=step)
        for path in sample_files(tmp_path).values():
            path.unlink()  # somebody makes room, so that nothing is ever thinned
    assert capsys.readouterr().err.count("has reached monitor.samples_mb") == 1


def test_without_a_limit_nothing_goes_and_a_deleted_folder_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SamplesFolder(tmp_path / "run", limit_bytes=0)
    for step in range(1, 8):
        folder.write(_responses(50), step=step)
    assert list(sample_files(tmp_path / "run")) == list(range(1, 8))
    assert capsys.readouterr().out.count("was deleted: it is made again") == 1


def test_files_that_somebody_removes_or_spoils_do_no_harm(tmp_path: Path) -> None:
    folder = SamplesFolder(tmp_path, limit_bytes=6000)
    folder.write(_responses(5), step=1)
    folder.write(_responses(5), step=2)
    folder.write(_responses(5), step=3)
    sample_files(tmp_path)[1].unlink()
    sample_files(tmp_path)[2].write_text("no JSON\n[1]\n")
    for step in range(4, 12):
        folder.write(_responses(5), step=step)
    assert _read(tmp_path, [11])[0][0].tokens is not None


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("")
    with pytest.raises(DataError, match=r"samples/step_000001\.jsonl cannot be written: File exists\."):
        SamplesFolder(tmp_path, limit_bytes=0).write(_responses(1), step=1)


def test_the_fields_are_those_that_are_written() -> None:
    assert set(TOKENS) == set(TOKEN_FIELDS)
