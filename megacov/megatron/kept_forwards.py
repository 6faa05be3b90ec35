"""Forwards whose graphs are kept, so that their backwards run in a later pass of Megatron's schedule.

Megatron's schedules run the backward of a micro-batch soon after its forward. To have all forwards before the first
backward, a first pass runs forwards only; Megatron leaves autograd on there, so what the model returns still holds its
graph. A second, ordinary pass gets these outputs in place of the model's. Between pipeline stages it sends gradients
alone: in place of an activation, a stage gets the tensor that it received in the first pass, with which its graph
begins. Order, gradient reduction and virtual stages stay Megatron's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.utils import get_attr_wrapped_model, get_model_config
from torch import Tensor, nn


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
        """The kept outputs, whose graph begins with what the stage has received. Each forward is resumed once.

        Args:
            stage: the chunk of the model.
            index: place of the micro-batch.

        Returns:
            The outputs, as they were kept.

        Raises:
            RuntimeError: the schedule took the activations in another order than in the pass that kept them.
        """
        kept = self._kept.pop((id(stage), index))
        if received_by(stage) is not kept.received:
            raise RuntimeError("Megatron's schedule has given a stage the activation of another micro-batch.")
        return kept.outputs[0] if len(kept.outputs) == 1 else kept.outputs

    def received(self) -> list[Tensor]:
        """What this rank has received from other stages, in the order of its forwards."""
        return [kept.received for kept in self._kept.values() if kept.received is not None]


class GradientsOnly(P2PCommunicator):
    """Megatron's messages between pipeline stages, without the activations, which an earlier pass has sent.

    A stage receives activations in the order of its forwards, which is the same in every pass: `KeptForwards.resume`
    checks it. Not for overlap_p2p_comm_warmup_flush, with which a schedule waits for a message for each activation.
    """

    def __init__(self, stage: nn.Module, received: Sequence[Tensor]) -> None:
        """Give the activations that the earlier pass has received on this rank, in its order."""
        config = get_model_config(stage)
        assert not config.overlap_p2p_comm_warmup_flush
        super().__init__(parallel_state.get_pipeline_model_parallel_group(), config)
        self._received = deque(received)

    def _communicate(
        self,
        *,
        tensor_send_next: Tensor | None,
        tensor_send_prev: Tensor | None,
        recv_prev: bool,
        recv_next: bool,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Any]:
        """Send and receive gradients alone: every method of the class sends and receives by this one."""
        activation = self._received.popleft() if recv_prev else None
        if tensor_send_prev is None and not recv_next:
            return activation, None, {}
        _, gradient, requests = super()._communicate(
            tensor_send_next=None,
            tensor_send_prev=tensor_send_prev,
            recv_prev=False,
            recv_next=recv_next,
            **kwargs,
        )
        return activation, gradient, requests


def received_by(stage: nn.Module) -> Tensor | None:
    """What the stage before has sent for the current micro-batch, as Megatron's schedule sets it; None on the first."""
    received: Tensor | None = get_attr_wrapped_model(stage, "decoder").input_tensor
    return received
