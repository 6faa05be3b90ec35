"""The output layer by itself, so that a pass can hold hidden states in place of logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import unwrap_model
from torch import Tensor, nn


def is_last(stage: nn.Module) -> bool:
    """Whether a chunk of the model ends in logits."""
    return bool(_model(stage).post_process)


@contextmanager
def without_output_layer(stage: nn.Module) -> Iterator[None]:
    """Let the last chunk of the model return the hidden states [s, b, h] behind its last norm in place of logits.

    With sequence parallelism they are this tensor-parallel rank's part of the positions.
    """
    model = _model(stage)
    assert model.post_process
    model.post_process = False  # of the whole model only: its decoder keeps its last norm
    try:
        yield
    finally:
        model.post_process = True


def logits_of(stage: nn.Module, hidden: Tensor) -> Tensor:
    """The output layer.

    Collectives: tp: an all-gather of the hidden states with sequence parallelism; in backward its reduce-scatter, or
    an all-reduce without.
    Gradient: to the hidden states and the weight.

    Args:
        stage: the last chunk of the model.
        hidden: [s, b, h], as it returns in `without_output_layer`.

    Returns:
        [b, s, v/tp], as the whole model returns them.
    """
    model = _model(stage)
    weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
    logits: Tensor = model.output_layer(hidden, weight=weight)[0]
    return logits.transpose(0, 1).contiguous()


def whole_hidden_and_weight(stage: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of the logits, for an op that multiplies them itself in a pass without gradient.

    Collectives: with sequence parallelism, tp: an all-gather of the hidden states.
    Gradient: none.

    Args:
        stage: the last chunk of the model.
        hidden: [s, b, h], as it returns in `without_output_layer`.

    Returns:
        Hidden states [s, b, h] of all positions, and this rank's weight [v/tp, h].
    """
    model = _model(stage)
    layer = model.output_layer
    if layer.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, group=layer.tp_group)
    shared = model.share_embeddings_and_output_weights
    weight: Tensor = model.shared_embedding_or_output_weight() if shared else layer.weight
    return hidden.detach(), weight.detach()


def _model(stage: nn.Module) -> Any:
    return unwrap_model(stage)
