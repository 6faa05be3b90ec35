"""Deferred backwards select and update as another pass does, with whatever a run may combine them with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch.multiprocessing.reductions import StorageWeakRef

from megacov.losses.loss import TokenLosses, policy_loss
from megacov.losses.registry import get_loss
from megacov.megatron.output_layer import logits_of, read_logits, without_output_layer
from megacov.parallel.collectives import all_reduce_max
from megacov.trainer.algorithm import EntropyMask, RolloutCorrection
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.metrics import selection_costs
from megacov.trainer.step import run_updates
from megacov.types import LossBatch
from tests.support.layout_cases import make_models
from tests.support.not_finite_cases import spoil_later_update
from tests.support.policies import (
    CLIP_COV,
    FLOAT32,
    KL_COV,
    KL_COV_WITH_TERMS,
    laid_out_ranks,
    make_policy,
    make_qwen2,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist
PLAIN = (1, 1, 1, 1, "none")
# Tensor, pipeline, virtual pipeline, context, recomputation; the rest of two ranks is data-parallel.
LAYOUTS = [PLAIN, (2, 1, 1, 1, "full"), (1, 2, 1, 1, "none"), (1, 2, 2, 1, "full")]
COMBINED = [("masked", PLAIN), ("dual_clip", PLAIN), ("sequences", (1, 1, 1, 2, "selective"))]
CASES = [*(("terms", layout) for layout in LAYOUTS), *COMBINED]


@policy_loss(needs_selection=True, needs_sequence_sums=True)
def over_sequences(batch: LossBatch) -> TokenLosses:
    """Policy gradient weighted by the ratio of the whole sequence, as GSPO has it, with KL-Cov's penalty."""
    assert batch.selected is not None and batch.sequence_log_ratio is not None and batch.sequence_tokens is not None
    weights = torch.exp(batch.sequence_log_ratio / batch.sequence_tokens.clamp(min=1))
    difference = batch.log_probs - batch.old_log_probs
    penalty = torch.where(batch.selected, difference.abs(), 0.0)
    return TokenLosses(-batch.advantages * weights * torch.exp(difference) + penalty)


ALGORITHMS = {
    "terms": KL_COV_WITH_TERMS,
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


@contextmanager
def _counted_activations() -> Iterator[list[int]]:
    """A list with a 1 for each activation that this rank sends to another stage in the context."""
    sent: list[int] = []
    communicate = P2PCommunicator._communicate

    def counted(self: P2PCommunicator, **tensors: Any) -> Any:
        sent.extend([1] * (tensors["tensor_send_next"] is not None))
        return communicate(self, **tensors)

    P2PCommunicator._communicate = counted
    try:
        yield sent
    finally:
        P2PCommunicator._communicate = communicate


def _select_by(method: str, name: str, layout: tuple[int, int, int, int, str], folder: str) -> dict[str, Any]:
    """Forward passes, selected tokens and weights of updates that select by the current log-probs."""
    forwards: list[int] = []
    tensor, pipeline, virtual, context, recompute = layout
    if name == "sequences":
        algorithm = replace(KL_COV, loss=get_loss(f"{__name__}:over_sequences"), loss_hyperparameters={})
    else:
        algorithm = ALGORITHMS[name]
    model = replace(FLOAT32, recompute=recompute, virtual_pipeline=virtual)
    with laid_out_ranks(tensor, pipeline, virtual_pipeline=virtual, context=context) as groups:
        policy = make_policy(groups, path=Path(folder, "untied"), model=model, with_reference=True)
        settings = step_settings(policy, num_updates=4, micro_batch_tokens=20)
        updates = prepare_mini_batches(policy, make_rollout_batch(seed=7), algorithm, settings)
        own = torch.tensor([sum(part.tokens.numel() for part in update.micro_batches) for update in updates])
        most = all_reduce_max(own, group=groups.control).tolist()
        # Two of the three later updates fit on the rank that has most; on another rank all may fit.
        limit = sorted(most[1:])[1] if method == "auto" else None
        policy.chunks[0].register_forward_hook(lambda *_: forwards.append(1))
        algorithm = replace(algorithm, defers=method != "pass", kept_positions=limit)
        with _counted_activations() as sent:
            outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
        weights = [weight.clone() for _, weight in policy.hf_weights()]
    return {
        "forwards": len(forwards),
        "activations_sent": len(sent),
        "micro_batches": [len(update.micro_batches) for update in updates],
        "own": own.tolist(),
        "most": most,
        "kept": [outcome.kept_positions for outcome in outcomes],
        "metrics": selection_costs(outcomes),
        "masks": [mask for outcome in outcomes if outcome.selection for mask in outcome.selection.masks],
        "weights": weights,
        "norms": [outcome.result.grad_norm for outcome in outcomes],
    }


def _read(how: str) -> tuple[bool, list[torch.Tensor]]:
    """Whether the logits are gone once log-probs are read, and values and gradient."""
    with laid_out_ranks(2) as groups:
        policy = make_policy(groups, model=FLOAT32)
        settings = step_settings(policy, num_updates=1, micro_batch_tokens=400)
        micro_batch = prepare_mini_batches(policy, make_rollout_batch(seed=7), KL_COV, settings)[0].micro_batches[0]
        (stage,) = policy.chunks
        with without_output_layer(stage):
            hidden = stage(micro_batch.tokens, micro_batch.positions, None).detach().requires_grad_()
        storages: list[StorageWeakRef] = []

        def read(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            storages.append(StorageWeakRef(logits.untyped_storage()))
            return policy.reader.read(logits, micro_batch, entropy_grad=True)

        values = read_logits(stage, hidden, read) if how == "anew" else read(logits_of(stage, hidden))
        is_gone = storages[0].expired()
        (gradient,) = torch.autograd.grad(values[0].sum() + values[1].square().sum(), hidden)
    return is_gone, [*(value.detach() for value in values), gradient]


def _one(name: str, *arguments: Any) -> Any:
    """One of them, so that they share one start of the ranks."""
    return {"select": _select_by, "spoil": spoil_later_update, "read": _read}[name](*arguments)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], list[Any]]:
    """Results of both ranks by case."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    cases = [("select", method, *case, str(folder)) for case in CASES for method in ("pass", "deferred")]
    cases.append(("select", "auto", "terms", PLAIN, str(folder)))
    for field in ("advantages", "old_log_probs"):
        cases += [("spoil", method, field) for method in ("kl_cov", "deferred")]
    cases += [("read", "once"), ("read", "anew")]
    return {case[:4]: by_rank for case, by_rank in zip(cases, run_cases(_one, cases, world_size=2), strict=True)}


@pytest.fixture(scope="module")
def four_stages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[Any]]:
    """Results of the ranks by method and number of virtual stages. Stages in the middle receive from both sides."""
    folder = tmp_path_factory.mktemp("deep")
    make_qwen2(folder / "untied", num_layers=8, tied=False)
    cases = [
        (way, "terms", (1, 4, chunks, 1, "none"), str(folder)) for chunks in (1, 2) for way in ("pass", "deferred")
    ]
    results = run_cases(_select_by, cases, world_size=4)
    return {(case[0], case[2][2]): by_rank for case, by_rank in zip(cases, results, strict=True)}


@pytest.mark.parametrize("virtual", [1, 2])
def test_four_stages_select_and_update_as_with_another_pass(four_stages, virtual):
    by_rank = zip(four_stages["pass", virtual], four_stages["deferred", virtual], strict=True)
    for rank, (one, other) in enumerate(by_rank):
        check_same_update(one, other)
        assert other["forwards"] == one["forwards"] - sum(one["micro_batches"][1:])
        assert other["activations_sent"] == (virtual - (rank == 3)) * other["forwards"]
    assert any(bool(mask.any()) for mask in four_stages["deferred", virtual][-1]["masks"])


def check_same_update(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that the same tokens are selected and that weights and norms are equal bit by bit."""
    assert all(torch.equal(a, b) for a, b in zip(one["masks"], other["masks"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], other["weights"], strict=True))
    assert one["norms"] == other["norms"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_deferred_backwards_select_and_update_as_another_pass_does(found, case):
    for one, other in zip(found["select", "pass", *case], found["select", "deferred", *case], strict=True):
        check_same_update(one, other)
        first, *later = one["micro_batches"]
        assert other["forwards"] == first + sum(later) == one["forwards"] - sum(later)
        assert one["kept"] == [None, 0, 0, 0]
        assert set(one["metrics"].values()) == {0.0}
        assert other["kept"] == [None, *other["most"][1:]]
        assert other["metrics"]["perf/selection_deferred"] == 1.0
    assert any(bool(mask.any()) for mask in found["select", "pass", *case][-1]["masks"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stages_send_each_activation_once_for_each_forward(found, layout):
    _, pipeline, virtual, *_ = layout
    # The last chunk of the last stage sends none.
    chunks_that_send = [0, 0] if pipeline == 1 else [virtual, virtual - 1]
    for method in ("pass", "deferred"):
        for by_rank, chunks in zip(found["select", method, "terms", layout], chunks_that_send, strict=True):
            assert by_rank["activations_sent"] == chunks * by_rank["forwards"]


def test_each_update_defers_if_it_fits_on_every_rank(found):
    by_rank = found["select", "auto", "terms", PLAIN]
    for one, other in zip(found["select", "pass", "terms", PLAIN], by_rank, strict=True):
        check_same_update(one, other)
        limit = sorted(other["most"][1:])[1]
        assert other["kept"] == [None, *(most if most <= limit else 0 for most in other["most"][1:])]
        assert other["metrics"]["perf/selection_deferred"] == pytest.approx(2 / 3)
        passed = [number for number, kept in zip(other["micro_batches"], other["kept"], strict=True) if kept == 0]
        assert other["forwards"] == sum(other["micro_batches"]) + sum(passed)
    # One rank alone would have deferred the update that the other has no room for.
    largest = max(range(1, 4), key=lambda i: by_rank[0]["most"][i])
    assert min(found["own"][largest] for found in by_rank) <= limit < by_rank[0]["most"][largest]


def test_logits_that_are_computed_anew_are_not_kept_and_have_the_same_gradient(found):
    for (kept_is_gone, kept), (is_gone, anew) in zip(found["read", "once"], found["read", "anew"], strict=True):
        assert (kept_is_gone, is_gone) == (False, True)
        assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))
        assert anew[-1].abs().max() > 0


@pytest.mark.parametrize("field", ["advantages", "old_log_probs"])
def test_an_update_that_is_not_finite_is_left_out_and_named_as_with_another_pass(found, field):
    passed, deferred = found["spoil", "kl_cov", field], found["spoil", "deferred", field]
    assert passed == deferred
    assert passed[-1][0] and passed[0][1] == [True, True, False, True]
