"""The first optimizer step tells its tokens' old log-probs itself: the same training with a part of the pass less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megacov.losses import get_loss
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.metrics import collect_metrics
from megacov.trainer.optimizer_step.mini_batch import all_inputs
from megacov.trainer.optimizer_step.old_policy import with_own_forwards
from megacov.trainer.optimizer_step.preparation import prepare_updates
from megacov.trainer.optimizer_step.token_inputs import old_log_probs
from megacov.trainer.step import run_updates
from tests.support.policies import CLIP_COV, GRPO, KL_COV, laid_out_policy, make_rollout_batch, step_settings
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist

ALGORITHMS = {
    "grpo": GRPO,
    "kl_cov": replace(KL_COV, defers=True),
    "kl_cov that does not fit": replace(KL_COV, defers=True, kept_positions=1),
    "clip_cov": replace(CLIP_COV, defers=True),
}
# Their passes cannot spare the first part: the selection, or the weight of a token, must be known before.
OTHERS = {
    "kl_cov with a pass": KL_COV,
    "kl_cov by old log-probs": replace(KL_COV, defers=True, log_probs="old"),
    "kl_cov over the rollout batch": replace(KL_COV, defers=True, scope="rollout_batch"),
    "erc": replace(GRPO, loss=get_loss("erc"), loss_hyperparameters={}),
}
# Two data-parallel ranks, and two pipeline stages.
CASES = [*((1, 1, name) for name in ALGORITHMS), (1, 2, "grpo"), (1, 2, "kl_cov"), *((1, 1, name) for name in OTHERS)]


def _train(
    tensor: int, pipeline: int, name: str, is_left: bool, num_updates: int, temperature: float
) -> dict[str, Any]:
    algorithm, forwards = (ALGORITHMS | OTHERS)[name], []
    with laid_out_policy(tensor, pipeline) as policy:
        policy.reader = replace(policy.reader, temperature=temperature)
        batch, settings = make_rollout_batch(), step_settings(policy, num_updates=num_updates, micro_batch_tokens=24)
        policy.chunks[0].register_forward_hook(lambda *_: forwards.append(1))
        updates, _ = prepare_updates(
            policy,
            batch,
            algorithm,
            settings.micro_batches,
            num_updates=num_updates,
            first_update=0,
            max_mismatch=1e9,
            first_is_left=is_left,
        )
        planned = len(forwards)
        outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
        updates = with_own_forwards(updates, outcomes, policy)
        metrics, _ = collect_metrics(
            updates, outcomes, algorithm, policy.groups, num_samples=16, is_logged=True, with_histogram=False
        )
        weights = [weight.clone() for _, weight in policy.hf_weights()]
    return {
        "planned": planned,
        "trained": len(forwards) - planned,
        "first": len(updates[0].micro_batches),
        "weights": weights,
        "old": old_log_probs(all_inputs(updates)),
        "metrics": {tag: value for tag, value in metrics.items() if not tag.startswith("perf/")},
    }


@pytest.fixture(scope="module")
def results() -> dict[tuple, list[dict[str, Any]]]:
    """What each rank found, by layout, name, whether the first step is left to itself, number of steps, temperature."""
    cases = [(*case, is_left, 2, 1.0) for case in CASES for is_left in (False, True)]
    cases += [(1, 1, "grpo", is_left, 1, 1.0) for is_left in (False, True)]
    cases += [(1, 1, "grpo", is_left, 2, 0.8) for is_left in (False, True)]
    return dict(zip(cases, run_cases(_train, cases, world_size=2), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_updates_are_the_same_bit_by_bit(results, case):
    for known, left in zip(results[*case, False, 2, 1.0], results[*case, True, 2, 1.0], strict=True):
        for weight, expected in zip(left["weights"], known["weights"], strict=True):
            assert torch.equal(weight, expected)
        for old, expected in zip(left["old"], known["old"], strict=True):
            torch.testing.assert_close(old, expected, rtol=0.0, atol=1e-6)
        assert left["metrics"].keys() == known["metrics"].keys()
        assert left["metrics"] == pytest.approx(known["metrics"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_first_part_of_the_pass_is_spared(results, case):
    known, left = (results[*case, is_left, 2, 1.0][0] for is_left in (False, True))
    # One that does not fit makes that part of the pass later, for its selection.
    later = known["first"] if case[2] == "kl_cov that does not fit" else 0
    assert left["planned"] == known["planned"] - (known["first"] if case[2] in ALGORITHMS else 0)
    assert left["trained"] == known["trained"] + later


def test_with_one_update_a_rollout_one_micro_batch_is_compared_with_the_server(results):
    known, left = (results[1, 1, "grpo", is_left, 1, 1.0][0] for is_left in (False, True))
    assert known["planned"] == known["first"] > left["planned"] == 1
    assert all(torch.equal(*pair) for pair in zip(left["weights"], known["weights"], strict=True))


def test_at_another_temperature_the_entropy_at_1_needs_the_whole_pass(results):
    known, left = (results[1, 1, "grpo", is_left, 2, 0.8][0] for is_left in (False, True))
    assert left["planned"] == known["planned"]
    assert "entropy/token_mean_t1" in left["metrics"]
