"""Which config.json files are understood, old ones included, and which are refused, with an error that names why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megacov.errors import ConfigError, DataError
from megacov.megatron.families.registry import FAMILIES
from megacov.megatron.model_shape import check_length, read_model_shape
from megacov.plan.model_sizes import read_model_sizes
from tests.support.families import LINEAR_ROPE, LLAMA3_ROPE, MODELS, SIZES, YARN_ROPE


def config(folder: Path, model_type: str, **fields) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | SIZES | fields))
    return folder


@pytest.mark.parametrize("rope", [LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE], ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind_key", ["rope_type", "type"])
def test_old_and_new_spellings_of_a_rotary_embedding_are_one(tmp_path, rope, model_type, kind_key):
    new = read_model_shape(config(tmp_path, model_type, rope_parameters=rope))
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    scaling[kind_key] = rope["rope_type"]
    old = read_model_shape(config(tmp_path, model_type, rope_theta=rope["rope_theta"], rope_scaling=scaling))
    assert new == old
    assert new.rope_theta == rope["rope_theta"] and new.rope_scaling is not None
    assert len(new.rope_scaling.inverse_frequencies) == new.head_dim // 2


def test_a_plain_rotary_embedding_keeps_its_base_period(tmp_path):
    shape = read_model_shape(config(tmp_path, "llama", rope_theta=5e5))
    assert shape.rope_theta == 5e5 and shape.rope_scaling is None
    assert read_model_shape(config(tmp_path, "llama", rope_theta=5e5, rope_scaling=None)) == shape


@pytest.mark.parametrize(
    ("model_type", "fields", "sentence"),
    [
        ("gpt2", {}, "is a gpt2 model; supported families: llama, mistral, qwen2, qwen3"),
        ("llama", {"attention_bias": True}, "attention_bias is True .* llama models can be trained with False only"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu' .* with 'silu' only"),
        ("llama", {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "by 'dynamic', whose"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 2,
                                 "long_factor": [2.0] * 2, "original_max_position_embeddings": 8}},
            "by 'longrope', whose",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "a fraction of 0.5",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_laid_into_megatron_is_refused(tmp_path, model_type, fields, sentence):
    folder = config(tmp_path, model_type, **fields)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_model_shape(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "quantized by fp8"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized by gptq"),
        ({"quantization_config": {"bits": 4}}, "quantized by a method without a name"),
        ({"compression_config": {"format": "pack-quantized"}}, "quantized by pack-quantized"),
        ({"file": {"quantization": {"quant_algo": "NVFP4"}}}, "hf_quant_config.json says .* quantized"),
    ],
)
def test_a_quantized_model_is_refused_by_both_readers_of_its_configuration(tmp_path, fields, named):
    folder = config(tmp_path, "llama", **{name: value for name, value in fields.items() if name != "file"})
    if "file" in fields:
        (folder / "hf_quant_config.json").write_text(json.dumps(fields["file"]))
    for read in (read_model_shape, lambda folder: read_model_sizes(folder / "config.json")):
        with pytest.raises(ConfigError, match=named):
            read(folder)


def test_weights_under_another_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"transformers_weights is 'ema.safetensors' in its config.json"):
        read_model_shape(config(tmp_path, "llama", transformers_weights="ema.safetensors"))


def test_a_rotary_embedding_that_lacks_a_parameter_is_said(tmp_path):
    with pytest.raises(DataError, match="factor"):
        read_model_shape(config(tmp_path, "llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4}))


@pytest.mark.parametrize(
    ("model_type", "fields", "window"),
    [
        ("mistral", {"sliding_window": 4096}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, None),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}, 8),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}, None),
        ("llama", {}, None),
    ],
)
def test_a_sliding_window_is_one_if_a_layer_has_it(tmp_path, model_type, fields, window):
    assert read_model_shape(config(tmp_path, model_type, **fields)).sliding_window == window


def test_sequences_fit_into_a_sliding_window(tmp_path):
    shape = read_model_shape(config(tmp_path, "mistral", sliding_window=100))
    check_length(shape, max_prompt_length=40, max_response_length=60)
    check_length(replace(shape, sliding_window=None), max_prompt_length=4000, max_response_length=6000)
    with pytest.raises(ConfigError, match="max_response_length is 101 and .* sliding window of 100 tokens"):
        check_length(shape, max_prompt_length=41, max_response_length=60)


def test_every_family_has_a_tiny_model():
    assert {model_type for model_type, _ in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", ["32", None, 0, -1, 1.5, True, [], 10**12, float("nan")])
def test_a_size_that_is_none_is_one_sentence(tmp_path, name, value):
    folder = config(tmp_path, "llama", **{name: value})
    for read in (read_model_shape, lambda folder: read_model_sizes(folder / "config.json")):
        with pytest.raises(DataError, match=f"{name} is .*: it must be a whole number|NaN where a number belongs"):
            read(folder)


@pytest.mark.parametrize("value", ["1e4", None, 0, -1.0, True, [], float("nan"), float("inf"), 10**200])
@pytest.mark.parametrize("place", ["old", "new"])
def test_a_base_period_that_is_no_number_is_one_sentence(tmp_path, value, place):
    fields = {"rope_theta": value} if place == "old" else {"rope_parameters": {"rope_theta": value}}
    folder = config(tmp_path, "qwen2", **fields)
    for read in (read_model_shape, lambda folder: read_model_sizes(folder / "config.json")):
        with pytest.raises(DataError, match=r"rope_theta is .*: it must be a number above 0|where a number belongs"):
            read(folder)
