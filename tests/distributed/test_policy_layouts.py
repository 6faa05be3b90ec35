"""A policy computes the same log-probs, selects the same tokens and reaches the same weights in every layout."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from megacov.megatron.policy import Policy
from megacov.trainer.optimizer_step.mini_batch import MiniBatch, all_micro_batches
from tests.support.families import transformers_tokens
from tests.support.policies import (
    CLIP_COV,
    TINY_POLICY,
    laid_out_policy,
    make_qwen2,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

LAYOUTS = {1: [(1, 1)], 2: [(2, 1), (1, 2), (1, 1)], 4: [(2, 2), (4, 1), (2, 1), (1, 2)]}


def _logits_case(tensor: int, pipeline: int, folder: str) -> dict | None:
    """Log-probs of random sequences, by token id, and the weights read back unchanged."""
    batch = make_rollout_batch(seed=1)
    with laid_out_policy(tensor, pipeline, path=Path(folder)) as policy:
        updates = prepare_mini_batches(policy, batch, CLIP_COV, step_settings(policy, num_updates=2))
        weights = dict(policy.hf_weights())
        fused = _differences_without_logits(policy, updates)
    parts = [part for planned in updates for part in planned.inputs]
    tokens = {
        int(token): (lp, h, h1)
        for part in parts
        for token, lp, h, h1 in zip(
            part.token_ids, part.old_log_probs.tolist(), part.entropy.tolist(), part.entropy_t1.tolist(), strict=True
        )
    }
    return {"tokens": tokens, "weights": weights, "fused": fused}


def _differences_without_logits(policy: Policy, updates: list[MiniBatch]) -> list[float]:
    """Largest difference of each quantity between the two ways through the output layer; none off the last stage."""
    micro_batches, widths = all_micro_batches(updates), set()
    options = {"with_entropy_t1": True, "num_with_sums": len(micro_batches), "min_p": 0.1}
    through_logits = policy.log_probs(micro_batches, **options)
    policy.fused_output = True
    policy.chunks[-1].register_forward_hook(lambda _module, _inputs, output: widths.add(output.shape[-1]))
    found = policy.log_probs(micro_batches, **options)
    assert widths == {policy.shape.hidden_size}
    if not found:
        return []
    names = [name.name for name in fields(found[0])]
    return [
        max(
            float((getattr(own, name).exp() - getattr(other, name).exp()).abs().max())  # a log-prob may be -inf
            for own, other in zip(found, through_logits, strict=True)
            if len(own.log_probs)
        )
        for name in names
    ]


@pytest.fixture(scope="module")
def tied_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2(tmp_path_factory.mktemp("tied"))


@pytest.mark.dist
def test_log_probs_and_entropy_equal_transformers(tied_policy: Path) -> None:
    from safetensors.torch import load_file

    for world_size, layouts in LAYOUTS.items():
        cases = [(t, p, str(folder)) for t, p in layouts for folder in (TINY_POLICY, tied_policy)]
        for case, by_rank in zip(cases, run_cases(_logits_case, cases, world_size=world_size), strict=True):
            expected = transformers_tokens(Path(case[2]))
            found = {token: values for part in by_rank for token, values in part["tokens"].items()}
            assert found.keys() == expected.keys()
            for token, values in expected.items():
                assert found[token] == pytest.approx(values, abs=1e-4), (world_size, case, token)
            assert [len(part["fused"]) for part in by_rank if part["tokens"]] == [6] * case[0] * (
                world_size // case[0] // case[1]
            )
            assert all(difference < 2e-5 for part in by_rank for difference in part["fused"])
            original = load_file(Path(case[2], "model.safetensors"))
            assert by_rank[0]["weights"].keys() == original.keys()
            assert all(torch.equal(by_rank[0]["weights"][name], original[name]) for name in original)
