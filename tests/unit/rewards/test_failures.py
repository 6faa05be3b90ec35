"""Failures are counted by kind, kept in a bounded file, printed once a kind, and too many of them end the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacov.errors import RewardError
from megacov.rewards import failures
from megacov.rewards.call import Outcome
from megacov.rewards.failures import FailureCount
from megacov.rewards.pool import Judged
from megacov.types import Completion, Prompt

TIMEOUT = Outcome(0.0, "timeout", "did not return in time")


def add(count: FailureCount, outcome: Outcome = TIMEOUT, *, text: str = "x") -> None:
    completion = Completion((1,), (-1.0,), text, "stop", ())
    count.add("my:judge", Prompt(0, "137=", (1,), "137"), completion, Judged(outcome, wait_s=1.0, call_s=0.5))


def make(tmp_path: Path, *, expected: int, share: float) -> FailureCount:
    return FailureCount(tmp_path, step=3, num_expected=expected, max_share=share)


def test_a_failure_too_many_ends_the_batch_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = make(tmp_path, expected=40, share=0.05)
    add(count)
    add(count, Outcome(0.0, "raised", "raised OSError"))
    with pytest.raises(RewardError) as error:
        add(count, text="y" * 1000)
    message = str(error.value)
    assert message.startswith("The verifier my:judge did not return in time for the response 'yyy")
    assert "3 of the 40 responses of step 3 have no verdict (2 timeout, 1 raised)" in message
    assert "rewards.max_failed_share = 0.05" in message and str(tmp_path / "verifier_failures.jsonl") in message
    assert len(message) < 600
    assert [line.split(" for ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "megacov: warning: step 3: the verifier my:judge did not return in time",
        "megacov: warning: step 3: the verifier my:judge raised OSError",
    ]


def test_the_share_of_a_small_batch_is_known_at_its_end(tmp_path: Path) -> None:
    """Fewer responses than expected were judged, as in a batch that ends early."""
    count = make(tmp_path, expected=40, share=0.05)
    for number in range(21):
        add(count, TIMEOUT if number < 2 else Outcome(1.0))
    with pytest.raises(RewardError, match="2 of the 21 responses"):
        count.finish()


def test_more_responses_than_expected_allow_more_failures(tmp_path: Path) -> None:
    count = make(tmp_path, expected=10, share=0.1)
    for number in range(30):
        add(count, TIMEOUT if number % 10 == 9 else Outcome(1.0))
    assert count.finish() == {"perf/verifier_wait_s": 1.0, "perf/verifier_call_s": 0.5}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_extremes_of_the_share(share: float, tmp_path: Path) -> None:
    count = make(tmp_path, expected=2, share=share)
    add(count, Outcome(1.0))
    if share == 1.0:
        add(count)
        count.finish()
    else:
        count.finish()
        with pytest.raises(RewardError):
            add(count)


def test_texts_are_kept_in_a_bounded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_LARGEST_FILE", 2_000)
    count = make(tmp_path, expected=100, share=1.0)
    for text in ("lone \udc80", "\u4e2d\n", "z" * 10**6, *["x"] * 50):
        add(count, text=text)
    content = (tmp_path / "verifier_failures.jsonl").read_bytes()
    kept = [json.loads(line) for line in content.splitlines()]
    assert [each["response"] for each in kept[:3]] == ["lone \udc80", "\u4e2d\n", "x"]
    assert kept[0]["kind"] == "timeout" and kept[0]["step"] == 3 and kept[0]["answer"] == "137"
    assert len(content) <= 2_000 and len(kept) < 50


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = make(tmp_path / "absent", expected=10, share=1.0)
    add(count)
    add(count)
    count.finish()
    assert capsys.readouterr().out.count("cannot be written: No such file or directory.") == 1
