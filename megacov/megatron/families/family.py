"""Defines a model family: how to read its configuration, and the weight table of one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megacov.megatron.families.layout import Layout
from megacov.megatron.families.shape import ModelShape


@dataclass(frozen=True)
class WeightRule:
    """How one Megatron parameter is made of Hugging Face tensors.

    names: possible Megatron names (Transformer Engine fuses a norm into the linear after it).
    sources: Hugging Face tensors, as (name, full shape).
    layer: global layer index; None for the embedding (first stage) and for what follows the last layer (last stage).
    on_last_stage: whether a parameter without a layer is on the last stage.
    expert: index of the expert, which is whole on one expert-parallel rank; None if all of these ranks hold the
        parameter.
    """

    names: tuple[str, ...]
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    layout: Layout
    layer: int | None = None
    on_last_stage: bool = False
    expert: int | None = None


Block = Callable[[ModelShape], list[WeightRule]]


@dataclass(frozen=True)
class Family:
    """A family of models.

    model_type: value of `model_type` in their `config.json`.
    read: transformers' configuration -> sizes; raises ConfigError for an unsupported feature.
    layer: parts of a layer; their names are relative to `model.layers.N.` and `decoder.layers.N.`.
    ignored: tensors of a layer that old folders hold and that are not needed.
    """

    model_type: str
    read: Callable[[Any], ModelShape]
    layer: tuple[Block, ...]
    ignored: tuple[str, ...] = ()
