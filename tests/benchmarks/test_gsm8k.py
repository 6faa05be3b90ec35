"""The graded reward and the settings of the GSM8K benchmark; end_to_end/test_gsm8k.py runs the benchmark itself."""

from __future__ import annotations

import pytest

from benchmarks.gsm8k import CONFIG, ROOT, SUITE
from benchmarks.gsm8k_closeness import closeness
from megacov.config import load_config
from megacov.evaluation.suite import load_suite


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("48 + 24 = 72", "72", 1.0),
        ("#### 36", "72", 0.5),
        ("#### 144", "72", 0.5),
        ("#### -72", "72", 0.0),
        ("no idea", "72", 0.0),
        ("1/0", "72", 0.0),
        ("0", "0", 1.0),
        ("5", "0", 0.0),
    ],
)
def test_closeness_is_graded(text: str, answer: str, reward: float) -> None:
    assert closeness(text, answer) == reward


def test_training_and_evaluation_ask_alike() -> None:
    config = load_config(ROOT / CONFIG, [])
    (problems,) = load_suite(ROOT / SUITE).sets
    assert (config.batch.updates_per_rollout, config.world_size) == (2, 1)
    assert problems.instruction == config.data.instruction
    assert problems.max_response_length == config.rollout.max_response_length
    assert problems.answer_format == config.data.answer_format
