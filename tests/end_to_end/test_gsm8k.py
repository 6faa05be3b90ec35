"""A real model on real problems: SmolLM2-135M and GSM8K, from sampling over the verifiers to an evaluation."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from benchmarks.gsm8k import data_folder
from tests.support.command import run
from tests.support.smollm2 import fetch

RATIO, SAMPLES = 1e-2, 4
SETTINGS = (
    "run.steps=1",
    "rollout.prompts_per_step=4",
    f"rollout.samples_per_prompt={SAMPLES}",
    "rollout.max_response_length=64",
    f"algorithm.selection.ratio={RATIO}",
)
PROBLEMS = 2
DEADLINE_S = 1800


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark measured in one step of two updates, and before and after it."""
    if not (data_folder() / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("GSM8K is not in MEGACOV_DATA")
    folder = tmp_path_factory.mktemp("gsm8k")
    reason = fetch(folder)
    if reason is not None:
        pytest.skip(f"SmolLM2 cannot be had here: {reason}")
    options = ("--minutes", "25", "--problems", str(PROBLEMS), "--model", str(folder / "model"))
    arguments = (*options, "--out", str(folder / "out"), *SETTINGS)
    module = ("-m", "benchmarks.gsm8k")
    ended = run(*arguments, log=folder / "log", module=module, deadline_s=DEADLINE_S, real=True)
    print(ended.output, file=sys.stderr)
    assert (ended.code, ended.left) == (0, []), ended.output
    assert "Traceback" not in ended.output
    found: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return found


@pytest.mark.slow
def test_rewards_are_graded(report: dict[str, Any]) -> None:
    *_, step = report["records"]
    metrics = step["metrics"]
    assert metrics["reward/std"] > 0.0
    assert metrics["reward/verifier_failed"] == 0.0
    assert metrics["rollout/groups"] == 4
    # The server and the trainer hold the same weights.
    assert metrics["rollout/mismatch_k1_abs"] < 1e-3


@pytest.mark.slow
def test_the_share_of_tokens_is_selected_in_each_update(report: dict[str, Any]) -> None:
    *updates, _ = report["records"]
    assert len(updates) == 2
    for update in updates:
        assert update["tokens"] >= 2 * SAMPLES  # of two prompts
        assert update["selected"] == max(1, int(RATIO * update["tokens"]))


@pytest.mark.slow
def test_the_gradient_on_selected_tokens(report: dict[str, Any]) -> None:
    """At first the policy is the old one, so the penalty and its gradient are 0; then it has a gradient of its own."""
    first, second, _ = report["records"]
    for update in (first, second):
        # Tokens of high covariance have an advantage, so each of them carries a gradient.
        assert all(gradient != 0.0 for gradient in update["token_gradients_without_penalty"])
        assert update["gradient_norm_selected"] > 0.0 and update["moved"] > 0.0
    assert first["penalty"] == first["gradient_norm_penalty"] == 0.0
    assert first["token_gradients"] == first["token_gradients_without_penalty"]
    assert second["penalty"] > 0.0 and second["gradient_norm_penalty"] > 0.0
    # |d| has a slope of 1, up or down, times the weight of a token, which is 1 / tokens for the mean over tokens.
    pairs = zip(second["token_gradients"], second["token_gradients_without_penalty"], strict=True)
    added = [abs(gradient - bare) * second["tokens"] for gradient, bare in pairs]
    assert added == pytest.approx([1.0] * second["selected"], rel=1e-3)


@pytest.mark.slow
def test_the_evaluation_before_and_after(report: dict[str, Any]) -> None:
    for found in (report["before"], report["after"]):
        score = found["scores"]["avg@1"]
        assert found["problems"] == PROBLEMS
        assert 0.0 <= score["low"] <= score["value"] <= score["high"] <= 1.0
