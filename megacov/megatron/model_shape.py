"""Sizes of a Hugging Face model, and checks that Megatron can lay it out."""

from __future__ import annotations

from pathlib import Path

from megacov.config.model_split import check_experts, check_model
from megacov.errors import ConfigError, DataError
from megacov.megatron.families.hf_config import UNUSABLE_VALUES, first_line
from megacov.megatron.families.registry import FAMILIES
from megacov.megatron.families.shape import ModelShape
from megacov.plan.model_sizes import read_model_values
from megacov.plan.quantization import refuse_quantized

__all__ = ["ModelShape", "check_expert_split", "check_length", "check_split", "read_model_shape"]


def read_model_shape(path: str | Path) -> ModelShape:
    """Read `config.json` of a Hugging Face model folder. Code that comes with a model is never run.

    Args:
        path: model folder.

    Returns:
        Sizes and features of the model.

    Raises:
        DataError: there is no such folder, or no readable configuration in it.
        ConfigError: the model's family or one of its features is not supported.
    """
    from transformers import AutoConfig

    if not Path(path, "config.json").is_file():
        raise DataError(f"model.path {path} has no config.json: give a Hugging Face model folder.")
    read_model_values(Path(path, "config.json"))
    try:
        hf = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except UNUSABLE_VALUES as error:
        raise DataError(f"model.path {path}: config.json cannot be read ({first_line(error)}).") from error
    if hf.model_type not in FAMILIES:
        raise ConfigError(f"model.path {path} is a {hf.model_type} model; supported families: {', '.join(FAMILIES)}.")
    quantization = {key: value for key, value in vars(hf).items() if key.endswith("_config")}
    refuse_quantized(quantization, config_file=Path(path, "config.json"))
    try:
        return FAMILIES[hf.model_type].read(hf)
    except UNUSABLE_VALUES as error:
        raise DataError(f"model.path {path}: config.json has values that do not fit ({first_line(error)}).") from error


def check_split(shape: ModelShape, *, tensor: int, pipeline: int, virtual_pipeline: int) -> None:
    """Check that the model can be split over tensor- and pipeline-parallel ranks.

    Args:
        shape: sizes of the model.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        virtual_pipeline: virtual stages on each pipeline rank.

    Raises:
        ConfigError: heads, layers or feed-forward size cannot be split this way.
    """
    check_model(
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        num_layers=shape.num_layers,
        # Experts are never split, and 0 columns pass the check for any number of ranks.
        ffn_hidden_size=shape.ffn_hidden_size if shape.experts is None else 0,
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=virtual_pipeline,
    )


def check_expert_split(shape: ModelShape, *, expert: int, tensor: int, sequence: bool) -> None:
    """Check that the model's experts can be distributed over expert-parallel ranks.

    Args:
        shape: sizes of the model.
        expert: expert-parallel size.
        tensor: tensor-parallel size.
        sequence: whether sequence parallelism is on.

    Raises:
        ConfigError: the model has no experts, or they cannot be distributed this way.
    """
    num_experts = None if shape.experts is None else shape.experts.num_experts
    check_experts(num_experts=num_experts, expert=expert, tensor=tensor, sequence=sequence)


def check_length(shape: ModelShape, *, max_prompt_length: int, max_response_length: int) -> None:
    """Check that no sequence can exceed the model's sliding window; within it, all attention is plain attention.

    Args:
        shape: sizes of the model.
        max_prompt_length: tokens of the longest prompt.
        max_response_length: tokens of the longest response.

    Raises:
        ConfigError: a sequence may be longer than the window.
    """
    longest = max_prompt_length + max_response_length
    if shape.sliding_window is not None and longest > shape.sliding_window:
        raise ConfigError(
            f"data.max_prompt_length + rollout.max_response_length is {longest} and the model has a sliding window of "
            f"{shape.sliding_window} tokens, which is supported only for sequences that fit into it: lower them."
        )
