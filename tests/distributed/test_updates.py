"""What an optimizer step costs in forward passes, and what each selection scope selects, on a real policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megacov.errors import NumericsError
from megacov.losses import get_loss
from megacov.selection import get_selector
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.step import PhaseClock, StepSettings, plan_updates, run_updates
from megacov.trainer.token_inputs import join
from tests.support.policies import ADAM, laid_out_policy, make_rollout_batch
from tests.support.run_ranks import run_cases

SETTINGS = StepSettings(num_updates=4, micro_batch_size=2, seed=0, log_every=1, cov_histogram_every=0)
GRPO = Algorithm(
    loss=get_loss("ppo_clip"),
    loss_hyperparameters={"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None},
    select=None,
    selection_hyperparameters={},
    scope="mini_batch",
    log_probs="old",
    aggregation="token_mean",
    constant_norm=100,
    entropy_coef=0.0,
    ref_kl_coef=0.0,
    ref_kl_estimator="k3",
    normalize_std=True,
)
KL_COV = replace(
    GRPO,
    loss=get_loss("kl_cov"),
    loss_hyperparameters={"kl_coef": 1.0, "estimator": "abs"},
    select=get_selector("kl_cov"),
    selection_hyperparameters={"ratio": 0.1},
    log_probs="current",
)
ALGORITHMS = {
    "grpo": GRPO,
    "current": KL_COV,
    "old": replace(KL_COV, log_probs="old"),
    "rollout_batch": replace(KL_COV, scope="rollout_batch"),
    "micro_batch": replace(KL_COV, scope="micro_batch"),
    "reference": replace(GRPO, ref_kl_coef=0.1),
}


def _count_forwards(name: str) -> dict:
    """Forward passes of each phase, in micro-batches, and the number of selected and of loss tokens."""
    algorithm, batch, forwards = ALGORITHMS[name], make_rollout_batch(), []
    with laid_out_policy(1, 1, with_reference=True) as policy:
        policy.model.register_forward_hook(lambda *_: forwards.append(1))
        updates = plan_updates(policy, batch, algorithm, SETTINGS)
        planned = len(forwards)
        outcomes = run_updates(policy, updates, algorithm, seed=0, first_update=0, clock=PhaseClock())
    masks = [mask for outcome in outcomes if outcome.selection is not None for mask in outcome.selection.masks]
    return {
        "planned": planned,
        "updates": len(forwards) - planned,
        "selected": int(sum(mask.sum() for mask in masks)),
        "tokens": int(sum(join(planned.inputs, "loss_mask").sum() for planned in updates)),
    }


def _poisoned() -> str:
    """A rollout batch whose reward is beyond float32: the update must be refused before it changes a weight."""
    batch = make_rollout_batch()
    with laid_out_policy(1, 1) as policy:
        updates = plan_updates(policy, batch, GRPO, SETTINGS)
        part = updates[0].inputs[0]
        updates[0].inputs[0] = replace(part, advantages=torch.full_like(part.advantages, 1e38) * 10)
        before = [weight.clone() for _, weight in policy.hf_weights()]
        with pytest.raises(NumericsError, match="the update was not applied"):
            run_updates(policy, updates, GRPO, seed=0, first_update=0, clock=PhaseClock())
        same = [torch.equal(a, b) for a, (_, b) in zip(before, policy.hf_weights(), strict=True)]
    assert all(same)
    return "refused"


def _learning_rates() -> list[float]:
    """Of four updates, with a warm-up over four steps."""
    with laid_out_policy(1, 1, adam=replace(ADAM, warmup_steps=4)) as policy:
        updates = plan_updates(policy, make_rollout_batch(), GRPO, SETTINGS)
        outcomes = run_updates(policy, updates, GRPO, seed=0, first_update=0, clock=PhaseClock())
    return [outcome.result.lr for outcome in outcomes]


@pytest.mark.dist
def test_a_warm_up_starts_above_zero_and_ends_at_the_peak() -> None:
    rates = run_cases(_learning_rates, [()], world_size=1)[0][0]
    assert rates == pytest.approx([ADAM.lr * i / 4 for i in (1, 2, 3, 4)])


@pytest.fixture(scope="module")
def counts() -> dict[str, dict]:
    results = run_cases(_count_forwards, [(name,) for name in ALGORITHMS], world_size=1)
    return {name: by_rank[0] for name, by_rank in zip(ALGORITHMS, results, strict=True)}


MICRO_BATCHES = 8  # 16 samples, 2 each
LATER = 6  # of them belong to the second, third and fourth update


@pytest.mark.dist
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_old_log_probs_cost_one_pass(counts: dict[str, dict], name: str) -> None:
    assert counts[name]["planned"] == MICRO_BATCHES * (2 if name == "reference" else 1)


@pytest.mark.dist
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_only_current_log_probs_of_later_updates_cost_another(counts: dict[str, dict], name: str) -> None:
    assert counts[name]["updates"] == MICRO_BATCHES + (LATER if name == "current" else 0)


@pytest.mark.dist
def test_rollout_batch_scope_has_one_quota_for_all_updates(counts: dict[str, dict]) -> None:
    assert counts["rollout_batch"]["selected"] == int(0.1 * counts["rollout_batch"]["tokens"])


@pytest.mark.dist
def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    assert run_cases(_poisoned, [()], world_size=1) == [["refused"]]
