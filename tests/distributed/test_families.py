"""A model of any family computes what transformers computes, trains alike and comes back unchanged, in any layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megacov.trainer.clock import PhaseClock
from megacov.trainer.step import plan_updates, run_updates
from tests.support.families import MODELS, make_model, transformers_tokens
from tests.support.policies import CLIP_COV, FLOAT32, laid_out_ranks, make_policy, make_rollout_batch, step_settings
from tests.support.run_ranks import run_cases

# Tensor, pipeline, virtual pipeline; by number of ranks.
LAYOUTS = {1: [(1, 1, 1)], 2: [(2, 1, 1), (1, 2, 2)], 4: [(2, 2, 1)]}
# A rotary embedding does not know of pipelines: its variants are tried in fewer layouts.
VARIANTS = ("llama2_linear", "qwen2_yarn", "qwen3_yarn")


def layouts_of(name: str, num_ranks: int | None = None) -> list[tuple[int, ...]]:
    """Those that a model is tried in."""
    layouts = [layout for size, found in LAYOUTS.items() if num_ranks in (None, size) for layout in found]
    return [layout for layout in layouts if name not in VARIANTS or layout[1] == 1]


def train(folder: str, tensor: int, pipeline: int, virtual: int, dtype: str) -> dict[str, Any]:
    """Log-probs, by token, of random sequences; the weights read back; those after two updates, and gradient norms."""
    batch, model = make_rollout_batch(seed=1), replace(FLOAT32, virtual_pipeline=virtual, dtype=dtype)
    with laid_out_ranks(tensor, pipeline, virtual_pipeline=virtual) as groups:
        policy = make_policy(groups, path=Path(folder), model=model)
        result: dict[str, Any] = {"weights": dict(policy.hf_weights())}
        updates = plan_updates(policy, batch, CLIP_COV, step_settings(policy, num_updates=2))
        outcomes = run_updates(policy, updates, CLIP_COV, seed=0, first_update=0, clock=PhaseClock())
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


@pytest.fixture(scope="module")
def results(folders: dict[str, Path]) -> dict[tuple[str, tuple[int, ...]], list[dict[str, Any]]]:
    found = {}
    for world_size in LAYOUTS:
        keys = [(name, layout) for name in folders for layout in layouts_of(name, world_size)]
        cases = [(str(folders[name]), *layout, "float32") for name, layout in keys]
        found |= dict(zip(keys, run_cases(train, cases, world_size=world_size), strict=True))
    return found


def _source(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.dist
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_entropy_equal_transformers(name: str, folders: dict[str, Path], results: Any) -> None:
    expected = transformers_tokens(folders[name])
    for layout in layouts_of(name):
        found = {token: values for rank in results[name, layout] for token, values in rank["tokens"].items()}
        assert found.keys() == expected.keys()
        for token, values in expected.items():
            assert found[token] == pytest.approx(values, abs=1e-4), (layout, token)


@pytest.mark.dist
@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back_bit_by_bit(name: str, folders: dict[str, Path], results: Any) -> None:
    source = _source(folders[name])
    for layout in layouts_of(name):
        weights = results[name, layout][0]["weights"]
        assert weights.keys() == source.keys()
        assert [key for key in source if not torch.equal(weights[key], source[key])] == [], layout


@pytest.mark.dist
@pytest.mark.parametrize("name", MODELS)
def test_updates_equal_those_of_one_rank(name: str, folders: dict[str, Path], results: Any) -> None:
    (alone,) = results[name, (1, 1, 1)]
    source = _source(folders[name])
    for layout in layouts_of(name):
        found = results[name, layout][0]
        assert found["grad_norms"] == pytest.approx(alone["grad_norms"], rel=1e-5), layout
        for key, weight in alone["after"].items():
            assert not torch.equal(weight, source[key]), f"{key} has not been trained"
            torch.testing.assert_close(found["after"][key], weight, rtol=0, atol=1e-6, msg=f"{layout}: {key}")


@pytest.mark.dist
def test_bfloat16_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    for name in ("llama3", "qwen3"):
        make_model(tmp_path / name, name, dtype=torch.bfloat16)
    cases = [(str(tmp_path / name), 2, 1, 1, "bfloat16") for name in ("llama3", "qwen3")]
    for case, (first, _) in zip(cases, run_cases(train, cases, world_size=2), strict=True):
        source = _source(Path(case[0]))
        assert first["weights"].keys() == source.keys()
        for key, weight in source.items():
            assert weight.dtype == torch.bfloat16 and torch.equal(first["weights"][key], weight), key


def test_stretched_rotary_embeddings_matter_at_these_lengths(tmp_path: Path, folders: dict[str, Path]) -> None:
    for name in ("llama2_linear", "llama3", "qwen2_yarn", "qwen3_yarn"):
        plain = make_model(tmp_path / name, name, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        without, stretched = transformers_tokens(plain), transformers_tokens(folders[name])
        assert max(abs(without[token][0] - stretched[token][0]) for token in stretched) > 1e-2, name
