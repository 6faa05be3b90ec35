"""How many forward passes an optimizer step takes, and what each selection scope selects, on a real policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megacov.megatron.policy import Policy
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.theorem import TheoremCheck
from megacov.trainer.optimizer_step.token_inputs import join
from megacov.trainer.step import StepSettings, run_updates
from tests.support.policies import (
    ADAM,
    FLOAT32,
    GRPO,
    KL_COV,
    laid_out_policy,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.reference import covariance, top_k_ids
from tests.support.run_ranks import run_cases


def _settings(policy: Policy) -> StepSettings:
    return step_settings(policy, num_updates=4, micro_batch_tokens=20)


ALGORITHMS = {
    "grpo": GRPO,
    "current": KL_COV,
    "old": replace(KL_COV, log_probs="old"),
    "rollout_batch": replace(KL_COV, scope="rollout_batch"),
    "micro_batch": replace(KL_COV, scope="micro_batch"),
    "reference": replace(GRPO, ref_kl_coef=0.1),
}


def _count_forwards(name: str) -> dict:
    """Forward passes of each part of a step, in micro-batches, and the numbers of selected and of loss tokens."""
    algorithm, batch, forwards = ALGORITHMS[name], make_rollout_batch(), []
    with laid_out_policy(1, 1, with_reference=True) as policy:
        policy.chunks[0].register_forward_hook(lambda *_: forwards.append(1))
        updates = prepare_mini_batches(policy, batch, algorithm, _settings(policy))
        planned = len(forwards)
        outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
    masks = [mask for outcome in outcomes if outcome.selection is not None for mask in outcome.selection.masks]
    return {
        "micro_batches": [len(update.micro_batches) for update in updates],
        "planned": planned,
        "updates": len(forwards) - planned,
        "selected": int(sum(mask.sum() for mask in masks)),
        "tokens": int(sum(join(planned.inputs, "loss_mask").sum() for planned in updates)),
    }


def _selected_in_scope(scope: str) -> list[list[tuple[Tensor, ...]]]:
    """For each optimizer step and micro-batch: log-probs, advantages, loss mask, token ids and selected tokens."""
    algorithm = replace(KL_COV, scope=scope, selection_hyperparameters={"ratio": 0.2})
    with laid_out_policy(1, 1) as policy:
        updates = prepare_mini_batches(policy, make_rollout_batch(seed=2), algorithm, _settings(policy))
        outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
    return [
        [
            (log_probs, part.advantages, part.loss_mask, part.token_ids, mask)
            for part, log_probs, mask in zip(
                planned.inputs, outcome.selection.log_probs, outcome.selection.masks, strict=True
            )
        ]
        for planned, outcome in zip(updates, outcomes, strict=True)
    ]


@pytest.mark.dist
def test_a_scope_is_what_covariance_and_quota_are_taken_over() -> None:
    """As in the paper's code: cov over the scope, then the max(1, int(ratio * N)) largest in it."""

    def check(parts: list[tuple[Tensor, ...]]) -> None:
        log_probs, advantages, loss_mask, token_ids, selected = map(torch.cat, zip(*parts, strict=True))
        # Repeated samples tie; rounding turns differences of noise into ties.
        cov = covariance(log_probs, advantages, loss_mask).round(decimals=5).tolist()
        number = max(1, int(0.2 * int(loss_mask.sum())))
        expected = top_k_ids(list(zip(cov, loss_mask.tolist(), token_ids.tolist(), strict=True)), number)
        assert set(token_ids[selected].tolist()) == expected

    scopes = ("mini_batch", "micro_batch")
    whole, local = (ranks[0] for ranks in run_cases(_selected_in_scope, [(scope,) for scope in scopes], world_size=1))
    for parts in whole:
        check(parts)
    # If all samples have the same advantage, every covariance is 0 up to rounding.
    differing = [part for parts in local for part in parts if len(part[1][part[2]].unique()) > 1]
    assert len(differing) >= 3
    for part in differing:
        check([part])


def _check_theorem(with_gradient: bool | None) -> dict:
    """An optimizer step around which the change of entropy is measured, or not: what it found, cost and left behind."""
    forwards: list[int] = []
    with laid_out_policy(1, 1) as policy:
        updates = prepare_mini_batches(policy, make_rollout_batch(), GRPO, _settings(policy))
        measured, masks = updates[0].micro_batches[:1], updates[0].inputs[0].kept_mask
        old, check = policy.log_probs(measured, num_with_sums=1), None
        if with_gradient is not None:
            check = TheoremCheck(policy, updates[0], old, num_micro_batches=1, with_gradient=with_gradient)
        before = [parameter.detach().clone() for parameter in policy.chunks[0].parameters()]
        policy.chunks[0].register_forward_hook(lambda *_: forwards.append(1))
        run_updates(policy, updates[:1], GRPO, clock=StepClock(), check=check)
        num_forwards, after = len(forwards), [parameter.clone() for parameter in policy.chunks[0].parameters()]
        entropies = {}
        for share in (1.0, 0.25, -0.25):
            with torch.no_grad():
                for parameter, one, other in zip(policy.chunks[0].parameters(), before, after, strict=True):
                    parameter.copy_(one + share * (other - one))
            entropies[share] = policy.log_probs(measured)[0].entropy[masks]
    changes = {
        "observed": (entropies[1.0] - old[0].entropy[masks]).mean(),
        "central": (entropies[0.25] - entropies[-0.25]).mean() * 2,
    }
    return {
        "forwards": num_forwards - len(updates[0].micro_batches),
        "weights": after,
        "found": {} if check is None else check.metrics(),
        **{name: float(value) for name, value in changes.items()},
    }


@pytest.mark.dist
def test_a_step_is_the_same_whether_its_change_of_entropy_is_measured_or_not() -> None:
    cases = [(None,), (False,), (True,)]
    without, plain, along_step = (ranks[0] for ranks in run_cases(_check_theorem, cases, world_size=1))
    assert [each["forwards"] for each in (without, plain, along_step)] == [0, 1, 2]
    for each in (plain, along_step):
        assert all(map(torch.equal, each["weights"], without["weights"]))
        assert each["found"]["theorem/observed"] == pytest.approx(each["observed"], rel=1e-4)
    assert "theorem/directional" not in plain["found"]
    # A quarter of the step forwards and backwards: the curvature cancels.
    assert along_step["found"]["theorem/directional"] == pytest.approx(along_step["central"], rel=1e-3)


def _learning_rates() -> list[float]:
    """Learning rates of four optimizer steps, with a warm-up over four steps."""
    with laid_out_policy(1, 1, adam=replace(ADAM, warmup_steps=4)) as policy:
        updates = prepare_mini_batches(policy, make_rollout_batch(), GRPO, _settings(policy))
        outcomes = run_updates(policy, updates, GRPO, clock=StepClock())
    return [outcome.result.lr for outcome in outcomes]


@pytest.mark.dist
def test_a_warm_up_starts_above_zero_and_ends_at_the_peak() -> None:
    rates = run_cases(_learning_rates, [()], world_size=1)[0][0]
    assert rates == pytest.approx([ADAM.lr * i / 4 for i in (1, 2, 3, 4)])


def _in_dtype(dtype: str) -> dict:
    """Log-probs of a rollout batch, and an optimizer step from logits in this dtype on two vocabulary shards."""
    seen = set()
    with laid_out_policy(2, 1, model=replace(FLOAT32, dtype=dtype)) as policy:
        policy.chunks[0].register_forward_hook(lambda _module, _inputs, logits: seen.add(str(logits.dtype)))
        updates = prepare_mini_batches(policy, make_rollout_batch(), KL_COV, _settings(policy))
        log_probs = join(updates[0].inputs, "old_log_probs")
        before = [weight.clone() for _, weight in policy.hf_weights()]
        outcomes = run_updates(policy, updates, KL_COV, clock=StepClock())
        after = [weight for _, weight in policy.hf_weights()]
    moved = [not torch.equal(a, b) and bool(b.isfinite().all()) for a, b in zip(before, after, strict=True)]
    norms = [outcome.result.grad_norm for outcome in outcomes]
    return {"logits": seen, "log_probs": log_probs, "moved": any(moved), "grad_norms": norms}


@pytest.mark.dist
def test_bfloat16_logits_are_read_as_they_are() -> None:
    full, half = (ranks[0] for ranks in run_cases(_in_dtype, [("float32",), ("bfloat16",)], world_size=2))
    assert full["logits"] == {"torch.float32"}
    assert half["logits"] == {"torch.bfloat16"}
    assert half["log_probs"].dtype == torch.float32
    # bfloat16 has three significant digits; logits here are below 16.
    torch.testing.assert_close(half["log_probs"], full["log_probs"], atol=0.2, rtol=0.02)
    assert half["moved"]
    assert half["grad_norms"][0] == pytest.approx(full["grad_norms"][0], rel=0.1)


@pytest.fixture(scope="module")
def counts() -> dict[str, dict]:
    results = run_cases(_count_forwards, [(name,) for name in ALGORITHMS], world_size=1)
    return {name: by_rank[0] for name, by_rank in zip(ALGORITHMS, results, strict=True)}


@pytest.mark.dist
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_old_log_probs_cost_one_pass(counts: dict[str, dict], name: str) -> None:
    assert counts[name]["planned"] == sum(counts[name]["micro_batches"]) * (2 if name == "reference" else 1)


@pytest.mark.dist
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_only_current_log_probs_of_later_updates_cost_another(counts: dict[str, dict], name: str) -> None:
    first, *later = counts[name]["micro_batches"]
    assert first > 1
    assert len(later) == 3
    assert counts[name]["updates"] == first + sum(later) * (2 if name == "current" else 1)


@pytest.mark.dist
def test_rollout_batch_scope_has_one_quota_for_all_updates(counts: dict[str, dict]) -> None:
    assert counts["rollout_batch"]["selected"] == int(0.1 * counts["rollout_batch"]["tokens"])
