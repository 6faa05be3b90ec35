"""Forwards whose graphs are kept, so that their backwards run in a later pass of Megatron's schedule.

Megatron's schedules run the backward of a micro-batch soon after its forward. To have all forwards before the first
backward, a first pass runs forwards only; Megatron leaves autograd on there, so what the model returns still holds its
graph. A second, ordinary pass gets these outputs in place of the model's. Between pipeline stages it sends the same
activations again, and each stage ties what it receives to the input that its kept graph began with. Order, gradient
reduction and virtual stages stay Megatron's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class _Kept:
    """What a stage received, None for the first one, and what it made of it."""

    received: Tensor | None
    outputs: tuple[Tensor, ...]


@dataclass
class KeptForwards:
    """Graphs of all forwards of an optimizer step on this rank, by stage and micro-batch."""

    _kept: dict[tuple[int, int], _Kept] = field(default_factory=dict)

    def add(self, stage: nn.Module, index: int, outputs: Tensor | Sequence[Tensor]) -> None:
        """Keep a forward that has just run.

        Args:
            stage: the chunk of the model that ran it.
            index: place of the micro-batch.
            outputs: what it returned, with its graph.
        """
        held = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        self._kept[id(stage), index] = _Kept(received_by(stage), held)

    def adding(self, stage: nn.Module, index: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that keeps what `function` returns for the last stage's output, besides returning it.

        Args:
            stage: the chunk of the model that ran the forward.
            index: place of the micro-batch.
            function: takes the output, and returns tensors with its graph.

        Returns:
            The function to call in its place.
        """

        def add(output: Tensor, **kwargs: Any) -> Any:
            outputs = function(output, **kwargs)
            self.add(stage, index, outputs)
            return outputs

        return add

    def resume(self, stage: nn.Module, index: int) -> Tensor | tuple[Tensor, ...]:
        """The kept outputs, tied to what the stage has received for the same micro-batch in this pass.

        Gradient: to the kept graph, and through it to the tensor just received. Each forward is resumed once.

        Args:
            stage: the chunk of the model.
            index: place of the micro-batch.

        Returns:
            The outputs, as they were kept.
        """
        kept = self._kept.pop((id(stage), index))
        received = received_by(stage)
        assert (received is None) == (kept.received is None)
        outputs = kept.outputs if received is None else _Resume.apply(received, kept)
        return outputs[0] if len(outputs) == 1 else outputs


def received_by(stage: nn.Module) -> Tensor | None:
    """What the stage before has sent for the current micro-batch, as Megatron's schedule sets it; None on the first."""
    received: Tensor | None = get_attr_wrapped_model(stage, "decoder").input_tensor
    return received


class _Resume(torch.autograd.Function):
    """Kept outputs as a function of the tensor received again, whose backward runs through the kept graph."""

    @staticmethod
    def forward(ctx: Any, received: Tensor, kept: _Kept) -> tuple[Tensor, ...]:
        ctx.kept = kept
        outputs = tuple(output.detach() for output in kept.outputs)
        constants = [output for output, own in zip(outputs, kept.outputs, strict=True) if not own.requires_grad]
        ctx.mark_non_differentiable(*constants)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        kept, ctx.kept = ctx.kept, None
        pairs = [(own, gradient) for own, gradient in zip(kept.outputs, gradients, strict=True) if own.requires_grad]
        torch.autograd.backward([own for own, _ in pairs], [gradient for _, gradient in pairs])
        return kept.received.grad, None
