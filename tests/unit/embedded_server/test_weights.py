"""Loading weights into a running model: everything fits and is loaded, or nothing changes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megacov.embedded_server.weights import WeightsDoNotFitError, load_weights
from tests.support.families import make_model
from tests.support.tiny_model import make_tiny_model


def copy_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def other_state(other_folder) -> dict[str, torch.Tensor]:
    return load_file(other_folder / "model.safetensors")


def test_weights_of_a_single_file(served, other_folder, other_state):
    load_weights(served.model, other_folder)
    assert equal_states(copy_state(served.model), other_state)


def test_weights_of_several_files(served, other_state, tmp_path):
    names = sorted(other_state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: other_state[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    load_weights(served.model, tmp_path)
    assert equal_states(copy_state(served.model), other_state)


def test_weights_are_cast_to_the_dtype_of_the_model(served, other_state, tmp_path):
    save_file({name: tensor.bfloat16() for name, tensor in other_state.items()}, tmp_path / "model.safetensors")
    load_weights(served.model, tmp_path)
    expected = {name: tensor.bfloat16().float() for name, tensor in other_state.items()}
    assert equal_states(copy_state(served.model), expected)


def test_tied_weights_may_be_given_once_or_twice_but_not_differ(tmp_path):
    tied = make_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(tied)
    state = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    embedding = "model.embed_tokens.weight"
    assert "lm_head.weight" not in state
    for extra in ({}, {"lm_head.weight": state[embedding].clone()}):
        save_file(state | extra, tmp_path / "model.safetensors")
        load_weights(model, tmp_path)
        assert equal_states(copy_state(model), state)
    save_file(state | {"lm_head.weight": state[embedding] + 1.0}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsDoNotFitError, match="tied"):
        load_weights(model, tmp_path)
    assert equal_states(copy_state(model), state)


def without_one(state, file):
    save_file({name: tensor for name, tensor in state.items() if "norm" not in name}, file)


def with_one_too_many(state, file):
    save_file(state | {"model.extra": torch.ones(1)}, file)


def with_another_shape(state, file):
    save_file(state | {"lm_head.weight": torch.ones(33, 16)}, file)


def cut_short(state, file):
    save_file(state, file)
    file.write_bytes(file.read_bytes()[:-100])


def empty(state, file):
    file.touch()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (without_one, "lacks 5 weights"),
        (with_one_too_many, "model.extra"),
        (with_another_shape, r"\(33, 16\).*\(32, 16\)"),
        (cut_short, "cannot be read"),
        (empty, "cannot be read"),
        (lambda state, file: None, "has no model.safetensors"),
    ],
)
def test_a_folder_that_does_not_fit_changes_nothing(served, other_state, tmp_path, write, message):
    write(other_state, tmp_path / "model.safetensors")
    before = copy_state(served.model)
    with pytest.raises(WeightsDoNotFitError, match=message):
        load_weights(served.model, tmp_path)
    assert equal_states(copy_state(served.model), before)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"lm_head.weight": "gone.safetensors"}}'])
def test_a_broken_index_changes_nothing(served, tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    before = copy_state(served.model)
    with pytest.raises(WeightsDoNotFitError):
        load_weights(served.model, tmp_path)
    assert equal_states(copy_state(served.model), before)


def test_experts_are_loaded_one_by_one(tmp_path):
    from transformers import AutoModelForCausalLM

    source = make_model(tmp_path / "source", "qwen3_moe")
    model = AutoModelForCausalLM.from_pretrained(source)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert any(name.endswith("experts.gate_up_proj") for name in expected), "transformers no longer stacks experts"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, source)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
