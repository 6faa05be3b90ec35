"""A model of any family equals transformers' model, trains the same and exports unchanged weights, in any layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megacov.trainer.clock import StepClock
from megacov.trainer.step import run_updates
from tests.support.families import MODELS, make_model, transformers_tokens
from tests.support.policies import (
    CLIP_COV,
    FLOAT32,
    laid_out_ranks,
    make_policy,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases


@dataclass(frozen=True)
class Layout:
    """How a model is split over ranks; the remaining dimension is data parallel."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    expert: int = 1
    sequence: bool = False
    context: int = 1
    dtype: str = "float32"


ALONE = Layout()
# By number of ranks. Expert-parallel ranks are data-parallel or tensor-parallel ranks, or both.
DENSE = {1: [ALONE], 2: [Layout(2), Layout(1, 2, 2)], 4: [Layout(2, 2)]}
WITH_EXPERTS = {
    1: [ALONE],
    2: [Layout(expert=2), Layout(2, expert=2, sequence=True), Layout(1, 2, 2)],
    4: [Layout(2, expert=4, sequence=True, context=2), Layout(1, 2, expert=2), Layout(2, expert=2, sequence=True)],
}
# These differ from others only in features that pipelines do not affect.
VARIANTS = ("llama2_linear", "qwen2_yarn", "qwen3_yarn", "qwen3_moe_plain")


def layouts_of(name: str, num_ranks: int | None = None) -> list[Layout]:
    """Layouts in which a model is tested."""
    by_size = WITH_EXPERTS if name.startswith("qwen3_moe") else DENSE
    layouts = [layout for size, found in by_size.items() if num_ranks in (None, size) for layout in found]
    return layouts if name not in VARIANTS else [layout for layout in layouts if layout in by_size[1] + by_size[2][:1]]


def train(folder: str, layout: Layout) -> dict[str, Any]:
    """Log-probs of random sequences by token; weights read back; weights after two optimizer steps; gradient norms."""
    batch = make_rollout_batch(seed=1)
    model = replace(FLOAT32, virtual_pipeline=layout.virtual, sequence_parallel=layout.sequence, dtype=layout.dtype)
    with laid_out_ranks(
        layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, expert=layout.expert, context=layout.context
    ) as groups:
        policy = make_policy(groups, path=Path(folder), model=model)
        result: dict[str, Any] = {"weights": dict(policy.hf_weights())}
        updates = prepare_mini_batches(policy, batch, CLIP_COV, step_settings(policy, num_updates=2))
        outcomes = run_updates(policy, updates, CLIP_COV, clock=StepClock())
        result |= {"after": dict(policy.hf_weights()), "grad_norms": [o.result.grad_norm for o in outcomes]}
    result["tokens"] = {
        int(token): (lp, h, h1)
        for planned in updates
        for part in planned.inputs
        for token, lp, h, h1 in zip(
            part.token_ids, part.old_log_probs.tolist(), part.entropy.tolist(), part.entropy_t1.tolist(), strict=True
        )
    }
    return result


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, name) for name in MODELS}


def _source(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.dist
def test_a_model_of_any_family_in_any_layout(folders: dict[str, Path]) -> None:
    """One test, so that the ranks start only once."""
    results = {}
    for world_size in (1, 2, 4):
        keys = [(name, layout) for name in folders for layout in layouts_of(name, world_size)]
        cases = [(str(folders[name]), layout) for name, layout in keys]
        results |= dict(zip(keys, run_cases(train, cases, world_size=world_size), strict=True))
    for name, folder in folders.items():
        expected, source = transformers_tokens(folder), _source(folder)
        (alone,) = results[name, ALONE]
        for layout in layouts_of(name):
            by_rank = results[name, layout]
            _assert_log_probs_equal(by_rank, expected, where=f"{name}, {layout}")
            _assert_weights_equal(by_rank[0]["weights"], source, where=f"{name}, {layout}")
            _assert_updates_equal(by_rank[0], alone, source, where=f"{name}, {layout}")


def _assert_log_probs_equal(by_rank: list[dict[str, Any]], expected: dict[int, Any], *, where: str) -> None:
    found = {token: values for rank in by_rank for token, values in rank["tokens"].items()}
    assert found.keys() == expected.keys(), where
    for token, values in expected.items():
        assert found[token] == pytest.approx(values, abs=1e-4), f"{where}: token {token}"


def _assert_weights_equal(weights: dict[str, Tensor], source: dict[str, Tensor], *, where: str) -> None:
    assert weights.keys() == source.keys(), where
    for key, weight in source.items():
        assert weights[key].dtype == weight.dtype and torch.equal(weights[key], weight), f"{where}: {key}"


def _assert_updates_equal(
    found: dict[str, Any], alone: dict[str, Any], source: dict[str, Tensor], *, where: str
) -> None:
    assert found["grad_norms"] == pytest.approx(alone["grad_norms"], rel=1e-5), where
    for key, weight in alone["after"].items():
        assert not torch.equal(weight, source[key]), f"{where}: {key} has not been trained"
        torch.testing.assert_close(found["after"][key], weight, rtol=0, atol=3e-7, msg=f"{where}: {key}")


@pytest.mark.dist
def test_bfloat16_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    names = ("llama3", "qwen3", "qwen3_moe")
    for name in names:
        make_model(tmp_path / name, name, dtype=torch.bfloat16)
    cases = [(str(tmp_path / name), replace(layouts_of(name, 2)[0], dtype="bfloat16")) for name in names]
    for case, (first, _) in zip(cases, run_cases(train, cases, world_size=2), strict=True):
        _assert_weights_equal(first["weights"], _source(Path(case[0])), where=case[0])


def test_stretched_rotary_embeddings_matter_at_these_lengths(tmp_path: Path, folders: dict[str, Path]) -> None:
    for name in ("llama2_linear", "llama3", "qwen2_yarn", "qwen3_yarn"):
        plain = make_model(tmp_path / name, name, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        without, stretched = transformers_tokens(plain), transformers_tokens(folders[name])
        assert max(abs(without[token][0] - stretched[token][0]) for token in stretched) > 1e-2, name
