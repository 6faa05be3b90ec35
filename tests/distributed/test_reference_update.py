"""A policy on Megatron-Core learns the weights that transformers and torch's Adam learn in float64 on the same data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megacov.trainer.clock import StepClock
from megacov.trainer.step import run_updates
from megacov.types import RolloutBatch
from tests.support import reference_update
from tests.support.policies import (
    GRPO,
    KL_COV_WITH_TERMS,
    TINY_POLICY,
    laid_out_policy,
    make_qwen2,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

ALGORITHMS = {"grpo": GRPO, "kl_cov": KL_COV_WITH_TERMS, "corrected": replace(KL_COV_WITH_TERMS, corrects=True)}
_KL_COV = {"ratio": 0.1, "entropy_coef": 0.01, "ref_kl_coef": 0.1}
REFERENCE = {"grpo": {"ratio": None}, "kl_cov": _KL_COV, "corrected": _KL_COV}
# (ranks, tensor, pipeline, samples, updates); with 8 samples in 4 updates, two of four replicas have no sample.
LAYOUTS = {"alone": (1, 1, 1, 16, 2), "sharded": (2, 2, 1, 16, 2), "idle_replicas": (4, 1, 1, 8, 4)}


def _make_batch(folder: Path, num_samples: int) -> RolloutBatch:
    """The same samples for both models; those of the tied one were drawn at two temperatures."""
    batch = make_rollout_batch(num_samples, seed=2)
    if folder == TINY_POLICY:
        return batch
    return replace(batch, temperatures=torch.tensor([0.6, 1.3]).repeat(num_samples // 2))


def _train(folder: str, name: str, tensor: int, pipeline: int, num_samples: int, num_updates: int) -> dict:
    batch = _make_batch(Path(folder), num_samples)
    with laid_out_policy(tensor, pipeline, path=Path(folder), with_reference=True) as policy:
        updates = prepare_mini_batches(policy, batch, ALGORITHMS[name], step_settings(policy, num_updates=num_updates))
        outcomes = run_updates(policy, updates, ALGORITHMS[name], clock=StepClock())
        return {
            "weights": dict(policy.hf_weights()),
            "grad_norms": [outcome.result.grad_norm for outcome in outcomes],
        }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"untied": TINY_POLICY, "tied": make_qwen2(tmp_path_factory.mktemp("tied"))}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def trained(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[str, dict[tuple[str, str], dict]]:
    num_ranks, *layout = LAYOUTS[request.param]
    keys = [(model, name) for model in folders for name in ALGORITHMS]
    cases = [(str(folders[model]), name, *layout) for model, name in keys]
    results = run_cases(_train, cases, world_size=num_ranks)
    return request.param, {key: by_rank[0] for key, by_rank in zip(keys, results, strict=True)}


def _largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max((found[name].double() - expected[name]).abs().max().item() for name in found)


@pytest.mark.dist
@pytest.mark.parametrize("model", ["untied", "tied"])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_updates_equal_a_float64_reference(trained, folders: dict[str, Path], model: str, name: str) -> None:
    layout, results = trained
    found = results[(model, name)]
    _, _, _, num_samples, num_updates = LAYOUTS[layout]
    batch = _make_batch(folders[model], num_samples)
    weights, norms = reference_update.train(folders[model], batch, num_updates=num_updates, **REFERENCE[name])
    assert found["grad_norms"] == pytest.approx(norms, rel=2e-5)
    assert _largest_difference(found["weights"], weights) < 5e-7
    # An optimizer step moves weights by much more than this tolerance, and so do the terms of the methods.
    other, _ = reference_update.train(
        folders[model], batch, num_updates=num_updates, **(REFERENCE[name] | {"ratio": 0.2 if name == "grpo" else None})
    )
    assert _largest_difference(found["weights"], other) > 1e-5
