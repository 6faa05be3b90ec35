"""Optimizer steps that are left out: where the cause lies, how many a run survives, and what the report holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megacov.errors import NumericsError
from megacov.megatron.policy import UpdateResult
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.not_finite import (
    Finding,
    SkippedUpdates,
    examine_inputs,
    examine_losses,
    without_tokens,
)
from megacov.trainer.optimizer_step.scope import make_scope
from megacov.trainer.optimizer_step.selection import Selection, select_tokens
from megacov.trainer.optimizer_step.token_inputs import TokenInputs
from megacov.trainer.optimizer_step.update import MiniBatchLoss
from megacov.trainer.state import TrainState
from megacov.types import LossOutput
from tests.support.policies import CLIP_COV, GRPO, KL_COV, KL_COV_WITH_TERMS, make_rollout_batch

ALGORITHMS = {
    "grpo": GRPO,
    "kl_cov": KL_COV,
    "terms": KL_COV_WITH_TERMS,
    "clip_cov": CLIP_COV,
    "micro_batch": replace(KL_COV, scope="micro_batch"),
    "dual_clip": replace(GRPO, loss_hyperparameters={**GRPO.loss_hyperparameters, "dual_clip": 3.0}),
}
SAMPLES = torch.tensor([4, 4, 4, 7, 7, 9])
LOSS_MASK = torch.tensor([True, True, True, True, False, True])
APPLIED = UpdateResult(1.0, 1e-3, [])


def spoiled(number: int, value: float = math.nan) -> Tensor:
    """[6] float32 with one value that is not finite."""
    values = torch.linspace(-2.0, -0.5, 6)
    values[number] = value
    return values


def make_inputs(**changes: Tensor) -> TokenInputs:
    values = torch.linspace(-2.0, -0.5, 6)
    fields: dict[str, Any] = {
        name: values.clone()
        for name in ("old_log_probs", "entropy", "entropy_t1", "rollout_log_probs", "advantages", "ref_log_probs")
    }
    fields["trainer_log_probs"] = fields["old_log_probs"]
    return TokenInputs(
        **{
            **fields,
            "token_ids": torch.arange(6),
            "loss_mask": LOSS_MASK,
            "sample_index": SAMPLES,
            "kept_mask": LOSS_MASK,
            "importance": torch.ones(6),
            "policy_advantages": fields["advantages"],
            "token_weights": torch.where(LOSS_MASK, 0.2, 0.0),
            **changes,
        }
    )


def loss_and_gradient(algorithm: Algorithm, part: TokenInputs, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a micro-batch, selected from as the algorithm does, and its gradient with respect to log-probs."""
    leaf, selection = log_probs.clone().requires_grad_(), None
    if algorithm.select is not None and algorithm.scope == "mini_batch":
        selection = select_tokens([part], [log_probs], [], algorithm, update=1, group=None)
    mini_batch, scope = MiniBatch(1, range(10), [], [part]), make_scope(algorithm, ParallelGroups())
    loss = MiniBatchLoss(mini_batch, scope, algorithm, selection=selection, is_on_policy=False, cp_group=None)
    output = loss(0, leaf, part.entropy)
    output.loss.backward()
    assert leaf.grad is not None
    return output.loss.detach(), leaf.grad


FIELDS = ("log_probs", "old_log_probs", "policy_advantages")


@pytest.mark.parametrize(
    ("name", "field"), [*((name, field) for name in ALGORITHMS for field in FIELDS), ("terms", "ref_log_probs")]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [0, 5])
def test_what_is_not_finite_spoils_loss_and_gradient_alike(name, value, field, number):
    part, log_probs = make_inputs(), torch.linspace(-2.1, -0.4, 6)
    if field == "log_probs":
        log_probs = spoiled(number, value)
    else:
        part = replace(part, **{field: spoiled(number, value)})
        part = replace(part, advantages=part.policy_advantages)
    loss, gradient = loss_and_gradient(ALGORITHMS[name], part, log_probs)
    assert bool(loss.isnan())
    assert bool(gradient.isnan().any())


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_token_without_loss_spoils_nothing(name):
    part = make_inputs(old_log_probs=spoiled(4), policy_advantages=spoiled(4), advantages=spoiled(4))
    loss, gradient = loss_and_gradient(ALGORITHMS[name], part, spoiled(4))
    assert bool(loss.isfinite())
    assert bool(gradient[LOSS_MASK].isfinite().all())


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_sound_loss_is_untouched(name):
    algorithm, part = ALGORITHMS[name], make_inputs()
    loss, gradient = loss_and_gradient(algorithm, part, torch.linspace(-2.1, -0.4, 6))
    assert bool(loss.isfinite()) and bool(gradient.isfinite().all())


def test_samples_with_anything_not_finite_are_named():
    nothing = make_inputs()
    bad = make_inputs(old_log_probs=spoiled(3), advantages=spoiled(5), ref_log_probs=spoiled(0, -math.inf))
    assert examine_inputs([nothing]) == ()
    assert examine_inputs([nothing, bad]) == (Finding(1, [4, 7, 9], 3),)


def test_log_probs_are_looked_at_without_loss_too_and_advantages_are_not():
    bad = make_inputs(old_log_probs=spoiled(4), advantages=spoiled(4))
    assert examine_inputs([bad]) == (Finding(0, [7], 1),)


def output(loss: float) -> LossOutput:
    return LossOutput(torch.tensor(loss), {})


def test_a_loss_without_a_culprit_names_all_samples_with_loss():
    part = make_inputs(kept_mask=LOSS_MASK & (SAMPLES != 7))
    found = examine_losses([part, part], [output(1.0), output(math.inf)], {0: part.entropy, 1: part.entropy}, None)
    assert found == (Finding(1, [4, 9], 2),)


def test_a_ratio_can_overflow():
    part = make_inputs(old_log_probs=torch.full((6,), -120.0))
    log_probs = torch.tensor([-1.0, -119.0, -119.0, -119.0, -1.0, -119.0])
    found = examine_losses([part], [output(math.inf)], {0: log_probs}, None)
    assert found == (Finding(0, [4], 1),)


def test_the_victim_of_a_selection_is_not_blamed():
    part = make_inputs()
    scores = torch.full((6,), math.nan)
    selection = Selection([LOSS_MASK], [scores], [LOSS_MASK], [part.entropy])
    assert examine_losses([part], [output(math.nan)], {0: part.entropy}, selection) == ()
    left = without_tokens(selection)
    assert not left.masks[0].any() and not left.candidates[0].any()
    assert left.masks[0].shape == LOSS_MASK.shape


def skipped(**changes: Any) -> UpdateResult:
    return replace(UpdateResult(math.nan, 1e-3, []), **changes)


def counter(state: TrainState, limit: int, **options: Any) -> SkippedUpdates:
    return SkippedUpdates(state, ParallelGroups(), max_in_a_row=limit, **options)


def test_only_those_in_a_row_count():
    state = TrainState()
    updates = counter(state, 2)
    for result in (skipped(), skipped(), APPLIED, skipped(), skipped()):
        updates.count(result, [], update=0)
    assert state.skipped_in_a_row == 2
    # The next step goes on counting.
    with pytest.raises(NumericsError, match="3 in a row, and optimizer.max_skipped_updates is 2"):
        counter(state, 2).count(skipped(), [], update=0)


def test_a_limit_of_zero_stops_at_the_first():
    with pytest.raises(NumericsError, match="1 in a row, and optimizer.max_skipped_updates is 0"):
        counter(TrainState(), 0).count(skipped(), [], update=0)
    counter(TrainState(), 0).count(APPLIED, [], update=0)


@pytest.mark.parametrize(
    ("result", "findings", "cause"),
    [
        (
            skipped(),
            [Finding(0, [3], 1)],
            "values of sample 3 in micro-batch 0 of rank 0 are not finite (gradient norm nan)",
        ),
        (
            skipped(),
            [Finding(0, [9, 10], 2), Finding(2, [1, 9], 2)],
            "values of samples 1, 9 and 10 in micro-batches 0 and 2 of rank 0 are not finite",
        ),
        (skipped(), [Finding(0, list(range(8)), 8)], "samples 0, 1, 2, 3, 4 and 3 more in micro-batch 0 of rank 0"),
        (skipped(), [Finding(0, list(range(64)), 900)], "samples 0, 1, 2, 3, 4 and more in micro-batch 0 of rank 0"),
        (skipped(own_gradient_is_finite=False), [], "every loss is finite, but the gradient is not on rank 0"),
        (skipped(grad_norm=math.inf), [], "every loss and every rank's gradient is finite, but their sum is not"),
    ],
)
def test_the_sentence_names_the_cause(result, findings, cause):
    with pytest.raises(NumericsError) as raised:
        counter(TrainState(step=2, update=8), 0).count(result, findings, update=9)
    sentence = str(raised.value)
    assert sentence.startswith("step 3, update 10 was left out on all ranks: ")
    assert cause in sentence
    assert "\n" not in sentence


def test_the_file_says_more(tmp_path, capsys):
    batch, state = make_rollout_batch(), TrainState(step=2, update=8)
    updates = counter(state, 2, log_folder=tmp_path, batch=batch)
    updates.count(skipped(), [Finding(1, [5, 2], 2)], update=8)
    updates.count(skipped(own_gradient_is_finite=False), [], update=9)
    first, second = json.loads((tmp_path / "not_finite_step_000003.json").read_text())
    assert (first["step"], first["update"], second["update"], second["in_a_row"]) == (3, 9, 10, 2)
    assert first["ranks"] == [
        {
            "rank": 0,
            "pipeline_stage": 0,
            "own_gradient_is_finite": True,
            "findings": [{"micro_batch": 1, "sample_ids": [5, 2], "num_samples": 2}],
        }
    ]
    assert [sample["id"] for sample in first["samples"]] == [2, 5]
    length = int(batch.prompt_lengths[2] + batch.response_lengths[2])
    assert first["samples"][0] == {
        "id": 2,
        "group": 0,
        "reward": float(batch.rewards[2]),
        "prompt_length": int(batch.prompt_lengths[2]),
        "token_ids": batch.tokens[2, :length].tolist(),
    }
    assert second["samples"] == []
    warnings = capsys.readouterr().err.splitlines()
    assert [line.startswith("megacov: warning: step 3, update ") for line in warnings] == [True, True]
    assert str(tmp_path / "not_finite_step_000003.json") in warnings[0]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "file").touch()
    updates = counter(TrainState(), 1, log_folder=tmp_path / "file" / "logs")
    updates.count(skipped(), [], update=0)
    assert "not_finite_step_000001.json cannot be written: Not a directory." in capsys.readouterr().err


def test_what_is_written_has_a_limit(tmp_path):
    everything = [Finding(i, list(range(64)), 10_000) for i in range(1000)]
    updates = counter(TrainState(), 9, log_folder=tmp_path)
    updates.count(skipped(), everything, update=0)
    (entry,) = json.loads((tmp_path / "not_finite_step_000001.json").read_text())
    assert len(entry["ranks"][0]["findings"]) == 16
    assert len(entry["samples"]) == 4
