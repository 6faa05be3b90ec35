"""The digests of a model folder change with what a resumed run reads, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacov.config import load_config
from megacov.errors import DataError
from megacov.megatron.weight_digests import combine, hash_tensors
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.saving.model_files import changed_model_files, read_model_files

TINY = Path("examples/tiny_policy")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny policy's folder."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    return folder


def _read(model: Path, *overrides: str) -> dict[str, Any]:
    settings = (f"model.path={model}", "algorithm.ref_kl_coef=0.1", *overrides)
    return read_model_files(load_config("yaml_configs/runs/tiny_grpo.yaml", settings), ParallelGroups())


def _edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(model: Path) -> None:
        values = json.loads((model / name).read_text()) if (model / name).exists() else {}
        change(values)
        (model / name).write_text(json.dumps(values))

    return edit


def _swap_two_entries(values: dict[str, Any]) -> None:
    vocabulary = values["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def _change_one_bit(model: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)


def _divide(model: Path) -> None:
    """The same tensors in two files, with other metadata."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, model / "a.safetensors", metadata={"format": "pt"})
    save_file({name: tensors[name] for name in names[5:]}, model / "b.safetensors")


CHANGES = {
    "a bit of the weights": (_change_one_bit, "model.weights"),
    "two entries swapped": (_edit_json("tokenizer.json", _swap_two_entries), "model.tokenizer"),
    "a token added": (lambda model: (model / "added_tokens.json").write_text('{"<x>": 9}'), "model.tokenizer"),
    "another tokenizer setting": (
        _edit_json("tokenizer_config.json", lambda values: values.update(add_bos_token=True)),
        "model.tokenizer",
    ),
    "another inline template": (
        _edit_json("tokenizer_config.json", lambda values: values.update(chat_template="{{ messages }}")),
        "model.chat_template",
    ),
    "a template file": (
        lambda model: (model / "chat_template.jinja").write_text("{{ messages }}"),
        "model.chat_template",
    ),
    "a further template": (
        lambda model: [
            (model / "additional_chat_templates").mkdir(),
            (model / "additional_chat_templates" / "tool_use.jinja").write_text("x"),
        ],
        "model.chat_template",
    ),
    "another stop token": (
        _edit_json("generation_config.json", lambda values: values.update(eos_token_id=[1, 2])),
        "model.generation",
    ),
    "another stop token of the model": (
        _edit_json("config.json", lambda values: values.update(eos_token_id=7)),
        "model.generation",
    ),
    "files divided otherwise": (_divide, None),
    "another version of transformers": (
        _edit_json("generation_config.json", lambda values: values.update(transformers_version="9")),
        None,
    ),
    "a readme": (lambda model: (model / "README.md").write_text("new"), None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named(change: str, model: Path) -> None:
    act, name = CHANGES[change]
    before = _read(model, "data.chat_template=true")
    act(model)
    after = _read(model, "data.chat_template=true")
    assert list(changed_model_files(before, after, model)) == ([] if name is None else [name])


def test_only_what_a_run_uses_counts(model: Path) -> None:
    before = _read(model, "data.chat_template=false", "algorithm.ref_kl_coef=0.0")
    _change_one_bit(model)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    after = _read(model, "data.chat_template=false", "algorithm.ref_kl_coef=0.0")
    assert before == after and before["model.weights"] is None


@pytest.mark.parametrize("num_shares", [1, 2, 3, 100])
def test_shares_together_are_every_tensor_once(tmp_path: Path, num_shares: int) -> None:
    tensors = {f"t{index}": torch.full((index,), float(index)) for index in range(9)} | {"zz": torch.zeros(0)}
    save_file(tensors, tmp_path / "model.safetensors")
    shares = [hash_tensors(tmp_path, share=share, num_shares=num_shares) for share in range(num_shares)]
    together = {name: digest for part in shares for name, digest in part.items()}
    assert together.keys() == tensors.keys() and sum(map(len, shares)) == len(tensors)
    assert together == hash_tensors(tmp_path, share=0, num_shares=1)
    assert combine(together) == combine(dict(reversed(together.items())))
    # Equal bytes under another shape are another tensor.
    save_file(tensors | {"t4": torch.full((2, 2), 4.0)}, tmp_path / "model.safetensors")
    assert combine(hash_tensors(tmp_path, share=0, num_shares=1)) != combine(together)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_file_that_cannot_be_read_is_a_sentence(model: Path, content: str) -> None:
    (model / "generation_config.json").write_text(content)
    with pytest.raises(DataError, match="the files of .* cannot be read"):
        _read(model)
