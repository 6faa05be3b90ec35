"""An export is what transformers loads by its config.json: dtype, names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacov.errors import CheckpointError
from megacov.trainer.saving.export_check import check_as_transformers
from tests.support.families import MODELS, make_model

NORM = "model.norm.weight"


@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3_moe", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_transformers_writes_passes(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    check_as_transformers(make_model(tmp_path, name, dtype=dtype), dtype=dtype)
    assert MODELS["qwen2"][1]["tie_word_embeddings"], "one of them has no head in its file"


@pytest.mark.parametrize(
    ("changes", "config", "sentence"),
    [
        ({NORM: None}, {}, f"lacks {NORM}"),
        (
            {"model.layers.0.mlp.experts.3.up_proj.weight": None},
            {},
            "lacks model.layers.0.mlp.experts.3.up_proj.weight",
        ),
        ({"more": torch.ones(2)}, {}, "holds more, which that model does not have"),
        ({NORM: torch.ones(16)}, {}, rf"{NORM} is F32 \(16,\), and expected is F32 \(32,\)"),
        ({NORM: torch.ones(32).bfloat16()}, {}, rf"{NORM} is BF16 \(32,\), and expected is F32"),
        ({}, {"dtype": "bfloat16"}, "config.json says torch.bfloat16, and its weights are torch.float32"),
        ({}, {"num_hidden_layers": 3}, "holds model.layers.3.* which that model does not have"),
        ({}, {"tie_word_embeddings": True, "model_type": "qwen2"}, "which that model does not have|lacks"),
    ],
)
def test_a_difference_is_named(tmp_path: Path, changes: dict, config: dict, sentence: str) -> None:
    folder = make_model(tmp_path, "qwen3_moe")
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    with pytest.raises(CheckpointError, match=sentence):
        check_as_transformers(folder, dtype=torch.float32)
