"""Sizes and parameter counts without torch equal those of the code that loads a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.loading_plan import plan_loading
from megacov.errors import ConfigError, DataError
from megacov.megatron.families.registry import FAMILIES as TRAINED
from megacov.megatron.model_shape import ModelShape, read_model_shape
from megacov.plan import Layout, ModelSizes, count_parameters, read_model_sizes, total_parameters
from megacov.plan.model_sizes import FAMILIES
from tests.support.families import MODELS, SIZES

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(
    [*(ROOT / "yaml_configs" / "models").glob("*/config.json"), *ROOT.glob("benchmarks/models/*/config.json")]
)


def write_config(folder: Path, name: str) -> Path:
    """The config.json of a tiny model, as transformers writes it."""
    from transformers import AutoConfig

    model_type, differences = MODELS[name]
    AutoConfig.for_model(model_type, **(SIZES | differences)).save_pretrained(folder)
    return folder / "config.json"


def check_equal(sizes: ModelSizes, shape: ModelShape) -> None:
    """Every field that both have is equal, and so are the experts and the features."""
    of_both, of_shape = asdict(sizes), asdict(shape)
    assert {name: value for name, value in of_both.items() if name in of_shape} == {
        name: value for name, value in of_shape.items() if name in of_both
    }
    experts = shape.experts
    found = (sizes.num_experts, sizes.experts_per_token, sizes.expert_hidden_size)
    assert found == ((experts.num_experts, experts.num_per_token, experts.ffn_hidden_size) if experts else (0, 0, 0))
    assert (sizes.has_qkv_bias, sizes.has_qk_norm) == (shape.qkv_bias, shape.qk_norm)


def test_the_families_are_those_that_are_trained() -> None:
    assert set(FAMILIES) == set(TRAINED)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_of_every_family_are_read_as_transformers_reads_them(tmp_path: Path, name: str) -> None:
    file = write_config(tmp_path, name)
    check_equal(read_model_sizes(file), read_model_shape(tmp_path))


@pytest.mark.parametrize(
    "windows", [{"use_sliding_window": True, "max_window_layers": 2}, {"use_sliding_window": True}, {}]
)
def test_a_window_counts_where_a_layer_has_it(tmp_path: Path, windows: dict[str, Any]) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("qwen2", **SIZES, sliding_window=16, **windows).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    check_equal(read_model_sizes(file), read_model_shape(tmp_path))
    # Older versions of transformers wrote this name.
    values = json.loads(file.read_text())
    values.pop("layer_types", None)
    file.write_text(json.dumps(values | {"sliding_window": 16}))
    check_equal(read_model_sizes(file), read_model_shape(tmp_path))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.parent.name)
def test_sizes_of_shipped_models_too(file: Path) -> None:
    check_equal(read_model_sizes(file), read_model_shape(file.parent))


def layouts(sizes: ModelSizes) -> list[Layout]:
    """Small and large layouts that divide the model."""
    found = []
    for tensor, pipeline, virtual in product((1, 2, 4, 8), (1, 2, 4), (1, 2)):
        cut = (
            sizes.num_key_value_heads,
            sizes.num_attention_heads,
            *(() if sizes.num_experts else (sizes.ffn_hidden_size,)),
        )
        if any(size % tensor for size in cut) or sizes.num_layers % (pipeline * virtual) or (virtual > 1 == pipeline):
            continue
        for expert in (1, 4) if sizes.num_experts else (1,):
            found.append(Layout(tensor, tensor > 1, pipeline, virtual, expert=expert, data=4))
    return found


def check_counts(file: Path, some: Sequence[Layout]) -> None:
    shape, sizes = read_model_shape(file.parent), read_model_sizes(file)
    assert some
    for layout in some:
        planned = plan_loading(
            shape,
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual_pipeline=layout.virtual_pipeline,
            expert=layout.expert,
            vocab_divisible_by=128,
            dtype=torch.bfloat16,
        )
        assert len(planned) == layout.tensor * layout.pipeline
        for rank in planned:
            count = count_parameters(sizes, layout, stage=rank.stage, vocab_divisible_by=128)
            assert count.total == rank.num_parameters, (layout, rank)


@pytest.mark.parametrize("name", MODELS)
def test_every_rank_of_every_family_holds_as_many_parameters_as_loading_plans(tmp_path: Path, name: str) -> None:
    file = write_config(tmp_path, name)
    check_counts(file, layouts(read_model_sizes(file)))


def test_every_rank_of_qwen_32b_does_too() -> None:
    file = ROOT / "yaml_configs" / "models" / "qwen2.5-32b" / "config.json"
    check_counts(file, [Layout(8, True, 2), Layout(4, pipeline=4, virtual_pipeline=2)])


def test_published_sizes() -> None:
    models = ROOT / "yaml_configs" / "models"
    in_billions = {
        name: round(total_parameters(read_model_sizes(models / name / "config.json")) / 1e9, 2)
        for name in ("qwen2.5-7b", "qwen2.5-32b", "qwen3-32b")
    }
    # The model cards say 7.61 B, 32.5 B ("32.8B params" counted on the hub), 32.8 B.
    assert in_billions == {"qwen2.5-7b": 7.62, "qwen2.5-32b": 32.76, "qwen3-32b": 32.76}


@pytest.mark.parametrize("name", MODELS)
def test_ranks_add_up_to_the_model_and_what_is_repeated(tmp_path: Path, name: str) -> None:
    sizes = read_model_sizes(write_config(tmp_path, name))
    stages = [count_parameters(sizes, Layout(pipeline=4), stage=stage, vocab_divisible_by=1) for stage in range(4)]
    copy = sizes.vocab_size * sizes.hidden_size if sizes.tie_word_embeddings else 0
    assert sum(stage.total for stage in stages) == total_parameters(sizes) + copy


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("{", DataError, "is not JSON"),
        ("[]", DataError, "holds [[][]] and no object"),
        (json.dumps({"model_type": "gpt2"}), ConfigError, "is of a gpt2 model"),
        (json.dumps({"model_type": "qwen2"}), DataError, "has no number for num_hidden_layers"),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, text: str, error: type[Exception], sentence: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(error, match=sentence):
        read_model_sizes(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_model_sizes(tmp_path / "gone.json")
