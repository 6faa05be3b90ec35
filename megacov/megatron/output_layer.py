"""The output layer by itself, so that a pass can hold hidden states in place of logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import unwrap_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Result = TypeVar("Result")


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


def read_logits(stage: nn.Module, hidden: Tensor, read: Callable[[Tensor], Result]) -> Result:
    """Apply a function to the logits, of whose graph they are no part: its backward computes them anew.

    What else the function keeps for its backward stays kept, so only the output layer runs twice.

    Collectives: those of `logits_of`, its all-gather once more in backward; and those of the function.
    Gradient: to the hidden states and the weight, through the function.

    Args:
        stage: the last chunk of the model, whose weights must be the same in the backward.
        hidden: [s, b, h], as it returns in `without_output_layer`.
        read: takes the logits [b, s, v/tp].

    Returns:
        What the function returns.
    """
    logits = logits_of(stage, hidden)
    address, shape = logits.data_ptr(), logits.shape

    def pack(saved: Tensor) -> Tensor | None:
        return None if saved.data_ptr() == address and saved.shape == shape else saved

    @torch.no_grad()
    def unpack(packed: Tensor | None) -> Tensor:
        return logits_of(stage, hidden) if packed is None else packed

    with saved_tensors_hooks(pack, unpack):
        return read(logits)


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
