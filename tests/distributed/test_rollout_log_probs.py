"""Optimizer steps whose old log-probs are the rollout server's: no pass before them, and the same updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from megacov.errors import WeightSyncError
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.metrics import collect_metrics
from megacov.trainer.optimizer_step.old_policy import with_own_forwards
from megacov.trainer.optimizer_step.preparation import prepare_updates
from megacov.trainer.step import run_updates
from tests.support.policies import (
    CLIP_COV,
    GRPO,
    KL_COV,
    laid_out_policy,
    make_rollout_batch,
    own_log_probs,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist

OFF = -0.1  # the server's log-probs minus the trainer's
# The gradient of |d| keeps only the sign of a difference that rounding makes here; that of k2 is smooth.
SMOOTH_KL_COV = replace(KL_COV, loss_hyperparameters={"kl_coef": 1.0, "estimator": "k2"})
UNCLIPPED = replace(GRPO, loss_hyperparameters={"clip_low": 1.0, "clip_high": 1e9, "dual_clip": None})
# Forward passes of an optimizer step beside each algorithm.
ALGORITHMS = {
    "grpo": (UNCLIPPED, 1),
    "clip_cov": (CLIP_COV, 2),
    "kl_cov deferred": (replace(SMOOTH_KL_COV, defers=True), 1),
}
# Two data-parallel ranks, and two pipeline stages.
CASES = [*((1, 1, name) for name in ALGORITHMS), (1, 2, "kl_cov deferred")]


def _train(tensor: int, pipeline: int, name: str, rollout_is_old: bool, off: float) -> dict[str, Any]:
    """Two optimizer steps on samples whose log-probs by the server differ from the trainer's by `off`."""
    algorithm, forwards = replace(ALGORITHMS[name][0], rollout_is_old=rollout_is_old), []
    with laid_out_policy(tensor, pipeline) as policy:
        batch = make_rollout_batch()
        batch.rollout_log_probs.copy_(own_log_probs(policy, batch) + off)
        policy.chunks[0].register_forward_hook(lambda *_: forwards.append(1))
        settings = step_settings(policy, num_updates=2, micro_batch_tokens=24)
        updates = prepare_mini_batches(policy, batch, algorithm, settings)
        planned = len(forwards)
        outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
        if rollout_is_old:
            updates = with_own_forwards(updates, outcomes, policy)
        metrics, _ = collect_metrics(
            updates, outcomes, algorithm, policy.groups, num_samples=16, is_logged=True, with_histogram=False
        )
        weights = [weight.clone() for _, weight in policy.hf_weights()]
    return {
        "planned": planned,
        "trained": (len(forwards) - planned) / sum(len(update.micro_batches) for update in updates),
        "weights": weights,
        "metrics": metrics,
        "losses": [sum(float(output.loss) for output in outcome.result.outputs) for outcome in outcomes],
    }


def _compare(off: float, max_mismatch: float) -> dict[str, Any]:
    """What is known before the first optimizer step where one micro-batch is compared with the server."""
    forwards: list[int] = []
    with laid_out_policy(1, 2) as policy:
        batch, sizes = make_rollout_batch(), step_settings(policy, num_updates=2, micro_batch_tokens=24).micro_batches
        batch.rollout_log_probs.copy_(own_log_probs(policy, batch) + off)
        policy.chunks[0].register_forward_hook(lambda *_: forwards.append(1))
        algorithm, options = replace(CLIP_COV, rollout_is_old=True), {"num_updates": 2, "first_update": 0}
        try:
            found = prepare_updates(policy, batch, algorithm, sizes, max_mismatch=max_mismatch, **options)
        except WeightSyncError as error:
            return {"forwards": len(forwards), "refusal": str(error)}
        run_updates(policy, found[0], algorithm, clock=StepClock())
        known = [part.trainer_log_probs is not None for each in found[0] for part in each.inputs]
    return {"known": known}


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@pytest.fixture(scope="module")
def results() -> dict[tuple, list[dict[str, Any]]]:
    """What each rank found: by tensor, pipeline, name, whose log-probs are old, and their difference, if it trained."""
    cases = [(_train, *case, is_old, 0.0) for case in CASES for is_old in (False, True)]
    cases += [(_train, 1, 1, "grpo", is_old, OFF) for is_old in (False, True)]
    cases += [(_compare, off, 0.1) for off in (0.0, 0.2)]
    return {case[1:]: by_rank for case, by_rank in zip(cases, run_cases(_call, cases, world_size=2), strict=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_server_with_the_trainers_log_probs_gives_the_same_updates_without_a_pass(results, case):
    for recomputed, own in zip(results[*case, False, 0.0], results[*case, True, 0.0], strict=True):
        assert recomputed["planned"] > own["planned"] == 0
        assert own["trained"] == ALGORITHMS[case[2]][1]
        for weight, expected in zip(own["weights"], recomputed["weights"], strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
        assert own["losses"] == pytest.approx(recomputed["losses"], rel=1e-4, abs=1e-6)


def test_the_ratio_is_to_the_server(results):
    """Where nothing is clipped, the first loss is that of a ratio of 1 times exp(0.1)."""
    for own, recomputed in zip(results[1, 1, "grpo", True, OFF], results[1, 1, "grpo", False, OFF], strict=True):
        assert own["losses"][0] == pytest.approx(math.exp(-OFF) * recomputed["losses"][0], rel=1e-5)
        assert abs(own["losses"][0]) > 1e-3


def test_metrics_come_from_the_forwards_of_the_updates(results):
    own, recomputed = (results[1, 1, "grpo", is_old, OFF][0]["metrics"] for is_old in (True, False))
    # Of the first optimizer step: in the second the policy has moved.
    assert own["rollout/mismatch_k1"] == pytest.approx(OFF, abs=1e-6)
    assert own["entropy/token_mean"] == pytest.approx(recomputed["entropy/token_mean"], rel=1e-2)
    assert own["entropy/token_mean"] != recomputed["entropy/token_mean"]
    # At temperature 0.8 nothing reads the logits at 1.
    assert own.keys() == recomputed.keys() - {"entropy/token_mean_t1", "entropy/sequence_mean_t1"}


def test_one_micro_batch_is_compared_with_the_server_before_anything_is_trained_on(results):
    for rank in results[0.2, 0.1]:
        assert rank["forwards"] == 1
        assert "differ by 0.2 nats" in rank["refusal"]
    first, last = (rank["known"] for rank in results[0.0, 0.1])
    assert first == []
    assert last == [True] + [False] * (len(last) - 1) != [True]
