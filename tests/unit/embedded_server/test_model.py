"""Opening a model folder: an unusable one is refused in one sentence, before anything is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacov.embedded_server.model import load_model
from megacov.errors import DataError
from tests.support.tiny_model import EOS_ID


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(model_folder, tmp_path / "model")


def configure(folder: Path, file: str = "config.json", **values: Any) -> None:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | values))


def test_limits_of_requests(model_folder):
    served = load_model(model_folder, dtype="float32")
    assert (served.vocab_size, served.context_length, served.eos_token_ids) == (32, 64, {EOS_ID})
    assert not served.model.training
    assert not any(parameter.requires_grad for parameter in served.model.parameters())


def test_every_end_of_sequence_token_counts(folder):
    configure(folder, "generation_config.json", eos_token_id=[7, 8])
    configure(folder, eos_token_id=9)
    assert load_model(folder, dtype="float32").eos_token_ids == {EOS_ID, 7, 8, 9}


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_the_dtype(folder, dtype, expected):
    state = load_file(folder / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, dtype="bfloat16")
    assert load_model(folder, dtype=dtype).model.dtype == expected


def without_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def with_a_larger_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = 32
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_weight, "lacks the weight model.norm.weight"),
        (cut_short, "cannot be loaded"),
        (with_a_larger_tokenizer, "tokenizer .* has 33 tokens but the model's vocabulary has 32"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (lambda folder: configure(folder, model_type="nothing"), "`nothing`"),
        (lambda folder: configure(folder, hidden_size=32), r"shape \(32, 16\) .* \(32, 32\)"),
        (lambda folder: configure(folder, layer_types=["linear_attention"] * 2), "linear_attention"),
    ],
)
def test_an_unusable_model_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        load_model(folder, dtype="float32")
