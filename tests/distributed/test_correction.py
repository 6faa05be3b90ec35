"""A corrected gradient selects the same tokens as another pass, and differs from its update by rounding alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megacov.losses.loss import TokenLosses, policy_loss
from megacov.losses.registry import get_loss
from megacov.plan.correction import CorrectionCost
from megacov.trainer.algorithm import EntropyMask, RolloutCorrection
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.metrics import selection_costs
from megacov.trainer.step import run_updates
from megacov.types import LossBatch
from tests.support.families import make_model
from tests.support.layout_cases import make_models
from tests.support.not_finite_cases import spoil_later_update
from tests.support.policies import (
    CLIP_COV,
    FLOAT32,
    KL_COV,
    KL_COV_WITH_TERMS,
    laid_out_ranks,
    make_policy,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist
TOLERANCE = 1e-4
# Tensor, pipeline, virtual pipeline, context, recomputation; the rest of two ranks is data-parallel.
PLAIN = (1, 1, 1, 1, "none")


@policy_loss(needs_selection=True, needs_sequence_sums=True)
def over_sequences(batch: LossBatch) -> TokenLosses:
    """A user's loss: the ratio of the whole sequence weighs a token, and a selected one has an entropy bonus."""
    assert batch.selected is not None and batch.sequence_log_ratio is not None and batch.sequence_tokens is not None
    assert batch.entropy is not None
    weights = torch.exp(batch.sequence_log_ratio / batch.sequence_tokens.clamp(min=1))
    losses = -batch.advantages * weights * torch.exp(batch.log_probs - batch.old_log_probs)
    return TokenLosses(torch.where(batch.selected, losses / 3 - 0.1 * batch.entropy, losses))


ALGORITHMS = {
    "terms": KL_COV_WITH_TERMS,
    "experts": KL_COV,
    "k3": replace(KL_COV, loss_hyperparameters={"kl_coef": 1.0, "estimator": "k3"}),
    "masked": replace(
        KL_COV,
        entropy_mask=EntropyMask("high", 0.5),
        rollout_correction=RolloutCorrection("token", "truncate", 0.0, 1.5),
        denominator="kept",
    ),
    "dual_clip": replace(
        CLIP_COV,
        loss_hyperparameters={"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0},
        aggregation="sequence_mean_token_mean",
    ),
}
CASES = [
    ("terms", PLAIN, False),
    ("terms", (2, 1, 1, 1, "full"), True),
    ("k3", (1, 2, 1, 1, "none"), True),
    ("masked", PLAIN, True),
    ("dual_clip", (1, 2, 2, 1, "none"), True),
    ("sequences", (1, 1, 1, 2, "selective"), True),
    ("experts", PLAIN, True),  # on expert-parallel ranks
]
# Of the positions of the first optimizer step, about half are in prefixes that end in a selected token.
CHEAP, DEAR = CorrectionCost(1), CorrectionCost(4)


def _algorithm(name: str, method: str) -> Any:
    if name == "sequences":
        loss = get_loss(f"{__name__}:over_sequences")
        algorithm = replace(KL_COV, loss=loss, loss_hyperparameters={}, entropy_coef=0.01)
    else:
        algorithm = ALGORITHMS[name]
    cost = {"cheap": CHEAP, "dear": DEAR}.get(method)
    return replace(algorithm, corrects=method != "pass", correction_cost=cost)


def _train(method: str, name: str, layout: tuple[int, int, int, int, str], packed: bool, folder: str) -> dict[str, Any]:
    """Positions of the forward passes, selected tokens and weights of four updates."""
    tensor, pipeline, virtual, context, recompute = layout
    model, algorithm = replace(FLOAT32, recompute=recompute, virtual_pipeline=virtual), _algorithm(name, method)
    forwards: list[int] = []
    path, expert = (Path(folder, name), 2) if name == "experts" else (Path(folder, "untied"), 1)
    with laid_out_ranks(tensor, pipeline, virtual_pipeline=virtual, context=context, expert=expert) as groups:
        policy = make_policy(groups, path=path, model=model, with_reference=True)
        settings = step_settings(policy, num_updates=4, micro_batch_tokens=24, packed=packed)
        updates = prepare_mini_batches(policy, make_rollout_batch(), algorithm, settings)
        hook = policy.chunks[0].register_forward_hook(lambda _, inputs, __: forwards.append(inputs[0].numel()))
        outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
        hook.remove()
        weights = [weight.clone() for _, weight in policy.hf_weights()]
    return {
        "positions": [sum(part.tokens.numel() for part in update.micro_batches) for update in updates],
        "forwards": sum(forwards),
        "masks": [mask for outcome in outcomes if outcome.selection for mask in outcome.selection.masks],
        "weights": weights,
        "norms": [outcome.result.grad_norm for outcome in outcomes],
        "losses": [float(output.loss) for outcome in outcomes for output in outcome.result.outputs],
        "metrics": [value for outcome in outcomes for out in outcome.result.outputs for value in out.metrics.items()],
        "shares": [outcome.corrected_share for outcome in outcomes],
        "costs": selection_costs(outcomes),
    }


def _one(name: str, *arguments: Any) -> Any:
    """One of both, so that they share one start of the ranks."""
    return {"train": _train, "spoil": spoil_later_update}[name](*arguments)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], list[Any]]:
    """Results of both ranks by case."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    make_model(folder / "experts", "qwen3_moe")
    cases = [("train", method, *case, str(folder)) for case in CASES for method in ("pass", "correction")]
    cases += [("train", method, *CASES[0], str(folder)) for method in ("cheap", "dear")]
    cases += [("spoil", method, "advantages") for method in ("kl_cov", "correction")]
    return {case[:5]: by_rank for case, by_rank in zip(cases, run_cases(_one, cases, world_size=2), strict=True)}


def check_same_update(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that the same tokens are selected, and that losses, norms and weights differ by rounding."""
    assert all(torch.equal(a, b) for a, b in zip(one["masks"], other["masks"], strict=True))
    # An optimizer step moves weights by 3e-5.
    assert (
        max([float((a - b).abs().max()) for a, b in zip(one["weights"], other["weights"], strict=True)] or [0]) < 5e-7
    )
    assert other["norms"] == pytest.approx(one["norms"], rel=TOLERANCE)
    assert other["losses"] == pytest.approx(one["losses"], rel=TOLERANCE, abs=1e-6)
    for (name, value), (same_name, same_value) in zip(one["metrics"], other["metrics"], strict=True):
        assert name == same_name and float(value) == pytest.approx(float(same_value), rel=TOLERANCE, abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_corrected_update_is_that_of_another_pass(found, case):
    for one, other in zip(found["train", "pass", *case], found["train", "correction", *case], strict=True):
        check_same_update(one, other)
        assert one["shares"] == [None] * 4
        assert other["shares"][0] is None and all(0 <= share <= 1 for share in other["shares"][1:])
        assert any(0 < share < 1 for share in other["shares"][1:])
        mean = sum(other["shares"][1:]) / 3
        assert other["costs"]["perf/selection_correction_share"] == pytest.approx(mean)
        assert (one["costs"]["perf/selection_corrected"], other["costs"]["perf/selection_corrected"]) == (0.0, 1.0)
    masks = found["train", "pass", *case][-1]["masks"]
    assert any(bool(mask.any()) for mask in masks)


def test_the_second_pass_sees_prefixes_alone(found):
    by_rank = found["train", "correction", *CASES[3]]
    whole = sum(sum(rank["positions"]) for rank in by_rank)
    prefixes = sum(rank["forwards"] for rank in by_rank) - whole
    shares = by_rank[0]["shares"][1:]
    assert 0 < prefixes < whole
    # Packed without padding, but for one position on a rank without a prefix.
    expected = sum(share * sum(rank["positions"][i + 1] for rank in by_rank) for i, share in enumerate(shares))
    assert prefixes == pytest.approx(expected, abs=3)


def test_auto_corrects_where_the_first_update_says_that_it_is_cheaper(found):
    passed = found["train", "pass", *CASES[0]]
    for method, corrected in (("cheap", 1.0), ("dear", 0.0)):
        for one, other in zip(passed, found["train", method, *CASES[0]], strict=True):
            check_same_update(one, other)
            assert other["costs"]["perf/selection_corrected"] == corrected
            assert (other["forwards"] == one["forwards"]) == (corrected == 0.0)


def test_an_update_that_is_not_finite_is_left_out_and_named_as_with_another_pass(found):
    passed, corrected = found["spoil", "kl_cov", "advantages"], found["spoil", "correction", "advantages"]
    assert passed == corrected
    assert passed[-1][0] and passed[0][1] == [True, True, False, True]
