"""A policy computes the same log-probs, selects the same tokens and reaches the same weights in every layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megacov.trainer.step import PhaseClock, plan_updates, run_updates
from tests.support.policies import (
    CLIP_COV,
    KL_COV_WITH_TERMS,
    TINY_POLICY,
    laid_out_policy,
    make_rollout_batch,
    make_tied_policy,
    step_settings,
)
from tests.support.run_ranks import run_cases

LAYOUTS = {1: [(1, 1)], 2: [(2, 1), (1, 2), (1, 1)], 4: [(2, 2), (4, 1), (2, 1), (1, 2)]}
SEQUENCE_MEANS = replace(CLIP_COV, scope="rollout_batch", aggregation="sequence_mean_token_mean", entropy_coef=0.01)
NO_PENALTY = replace(KL_COV_WITH_TERMS, loss_hyperparameters={"kl_coef": 0.0, "estimator": "abs"})
ALGORITHMS = {"kl_cov": KL_COV_WITH_TERMS, "clip_cov": SEQUENCE_MEANS, "no_penalty": NO_PENALTY}


def _train(tensor: int, pipeline: int, name: str) -> dict:
    """Two optimizer steps on a fixed rollout batch."""
    batch = make_rollout_batch()
    with laid_out_policy(tensor, pipeline, with_reference=True) as policy:
        updates = plan_updates(policy, batch, ALGORITHMS[name], step_settings(policy, num_updates=2))
        outcomes = run_updates(policy, updates, ALGORITHMS[name], seed=0, first_update=7, clock=PhaseClock())
        weights = dict(policy.hf_weights())
    log_probs, selected = {}, set()
    for planned, outcome in zip(updates, outcomes, strict=True):
        for i, part in enumerate(planned.inputs):
            log_probs |= dict(zip(part.token_ids.tolist(), part.old_log_probs.tolist(), strict=True))
            selected |= set(part.token_ids[outcome.selection.masks[i]].tolist())
    grad_norms = [outcome.result.grad_norm for outcome in outcomes]
    return {"log_probs": log_probs, "selected": selected, "grad_norms": grad_norms, "weights": weights}


@pytest.fixture(scope="module")
def trained() -> dict[tuple[int, int, int, str], dict]:
    """Results of all ranks together, by (world size, tensor, pipeline, algorithm)."""
    results = {}
    for world_size, layouts in LAYOUTS.items():
        names = ["kl_cov", "clip_cov"] if world_size > 1 else list(ALGORITHMS)
        cases = [(tensor, pipeline, name) for tensor, pipeline in layouts for name in names]
        for case, by_rank in zip(cases, run_cases(_train, cases, world_size=world_size), strict=True):
            whole = dict(by_rank[0])
            for part in by_rank[1:]:
                whole["log_probs"] = whole["log_probs"] | part["log_probs"]
                whole["selected"] = whole["selected"] | part["selected"]
            results[(world_size, *case)] = whole
    return results


CASES = [
    (w, t, p, name) for w, layouts in LAYOUTS.items() for t, p in layouts for name in ("kl_cov", "clip_cov") if w > 1
]


@pytest.mark.dist
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_makes_the_same_update(trained: dict, case: tuple[int, int, int, str]) -> None:
    alone, sharded = trained[(1, 1, 1, case[3])], trained[case]
    assert sharded["log_probs"] == pytest.approx(alone["log_probs"], abs=1e-5)
    assert sharded["selected"] == alone["selected"]
    assert sharded["grad_norms"] == pytest.approx(alone["grad_norms"], rel=1e-5)
    assert sharded["weights"].keys() == alone["weights"].keys()
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], weight, rtol=1e-5, atol=2e-6, msg=name)


def test_updates_select_tokens_and_change_weights(trained: dict) -> None:
    """The comparison above is not one of nothing with nothing."""
    for name in ALGORITHMS:
        result = trained[(1, 1, 1, name)]
        assert len(result["selected"]) >= 4
        assert min(result["grad_norms"]) > 1e-3
        assert max(result["grad_norms"]) < 100
    # What the method adds to the second update is far above the tolerance of the comparison.
    for other in ("clip_cov", "no_penalty"):
        pairs = zip(_weights(trained, "kl_cov"), _weights(trained, other), strict=True)
        assert max((a - b).abs().max().item() for a, b in pairs) > 1e-5


def _weights(trained: dict, name: str) -> list[Tensor]:
    return list(trained[(1, 1, 1, name)]["weights"].values())


def _logits_case(tensor: int, pipeline: int, folder: str) -> dict | None:
    """Log-probs of random sequences, by token id, and the weights read back unchanged."""
    batch = make_rollout_batch(seed=1)
    with laid_out_policy(tensor, pipeline, path=Path(folder)) as policy:
        updates = plan_updates(policy, batch, CLIP_COV, step_settings(policy, num_updates=2))
        weights = dict(policy.hf_weights())
    parts = [part for planned in updates for part in planned.inputs]
    tokens = {
        int(token): (lp, h, h1)
        for part in parts
        for token, lp, h, h1 in zip(
            part.token_ids, part.old_log_probs.tolist(), part.entropy.tolist(), part.entropy_t1.tolist(), strict=True
        )
    }
    return {"tokens": tokens, "weights": weights}


def _transformers_tokens(folder: Path) -> dict[int, tuple[float, float, float]]:
    """The same by transformers, in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    batch, result = make_rollout_batch(seed=1), {}
    for i in range(len(batch.rewards)):
        prompt, response = int(batch.prompt_lengths[i]), int(batch.response_lengths[i])
        ids = batch.tokens[i, : prompt + response]
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        for j in range(response):
            scaled, plain = (torch.log_softmax(logits[prompt + j - 1] / t, -1) for t in (0.8, 1.0))
            entropies = [float(-(lp.exp() * lp).sum()) for lp in (scaled, plain)]
            result[i * batch.max_response_length + j] = (float(scaled[ids[prompt + j]]), *entropies)
    return result


@pytest.fixture(scope="module")
def tied_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tied_policy(tmp_path_factory.mktemp("tied"))


@pytest.mark.dist
def test_log_probs_and_entropy_equal_transformers(tied_policy: Path) -> None:
    from safetensors.torch import load_file

    for world_size, layouts in LAYOUTS.items():
        cases = [(t, p, str(folder)) for t, p in layouts for folder in (TINY_POLICY, tied_policy)]
        for case, by_rank in zip(cases, run_cases(_logits_case, cases, world_size=world_size), strict=True):
            expected = _transformers_tokens(Path(case[2]))
            found = {token: values for part in by_rank for token, values in part["tokens"].items()}
            assert found.keys() == expected.keys()
            for token, values in expected.items():
                assert found[token] == pytest.approx(values, abs=1e-4), (world_size, case, token)
            original = load_file(Path(case[2], "model.safetensors"))
            assert by_rank[0]["weights"].keys() == original.keys()
            assert all(torch.equal(by_rank[0]["weights"][name], original[name]) for name in original)
