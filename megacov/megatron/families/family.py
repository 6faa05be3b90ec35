"""What a family of models is: how its configuration is read, and the table of a layer's weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megacov.megatron.families.layout import Layout
from megacov.megatron.families.shape import ModelShape


@dataclass(frozen=True)
class WeightRule:
    """One Megatron parameter.

    names: its possible names (Transformer Engine fuses a norm into the linear after it).
    sources: the Hugging Face tensors it holds, as (name, full shape).
    layer: global layer index; None for the embedding (first stage) and what follows the last layer (last stage).
    on_last_stage: where `layer` is None.
    expert: whose it is; an expert is whole on one expert-parallel rank. None for what all of them hold.
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

    model_type: as in the `config.json` of its models.
    read: transformers' configuration -> sizes; raises ConfigError for what cannot be laid into Megatron.
    layer: the parts of a layer; names in them start below `model.layers.N.` and `decoder.layers.N.`.
    ignored: tensors of a layer that old folders hold and nothing reads.
    """

    model_type: str
    read: Callable[[Any], ModelShape]
    layer: tuple[Block, ...]
    ignored: tuple[str, ...] = ()
