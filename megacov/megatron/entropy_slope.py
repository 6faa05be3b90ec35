"""The directional derivative of an entropy along the optimizer step that was really taken."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor
from torch.distributed import ProcessGroup

from megacov.megatron.optimizer_state import distributed_optimizers
from megacov.parallel.collectives import all_reduce_sum


class EntropySlope:
    """A gradient and the weights at which it was taken, both as this rank's slices of the optimizer's main weights.

    Every weight of the model is counted once over all ranks, by the rule of Megatron's gradient norm: a slice is on one
    data-parallel rank, weights that tensor-parallel ranks all hold count on the first, and tied embeddings count where
    they are not a copy. In bfloat16 training the main weights are the float32 ones, so the rounding of the model's
    weights is not part of the derivative.
    """

    def __init__(self, optimizer: MegatronOptimizer, *, group: ProcessGroup | None) -> None:
        """Copy the gradients that the optimizer was prepared with, and its weights. Collectives: none.

        Args:
            optimizer: after `prepare_grads`, and before its next step.
            group: all ranks of the model.
        """
        self._group = group
        self._parts = [
            (weights, weights.detach().clone(), weights.grad.detach().clone())
            for weights in _counted_once(optimizer)
            if weights.grad is not None
        ]

    @torch.no_grad()
    def along_step(self, *, device: torch.device) -> float:
        """The gradient times the change of the weights since; call it after the optimizer's step.

        Collectives: group: SUM [] float64. Waits for the device.

        Args:
            device: of the message.

        Returns:
            The derivative, equal on all ranks.
        """
        total = torch.zeros((), dtype=torch.float64, device=device)
        for weights, before, gradient in self._parts:
            total += torch.dot((weights - before).double().flatten(), gradient.double().flatten())
        return float(all_reduce_sum(total, group=self._group))


def _counted_once(optimizer: MegatronOptimizer) -> Iterator[Tensor]:
    """This rank's slices of the main weights, without those that another rank counts."""
    for each in distributed_optimizers(optimizer):
        for weights in each.get_parameters():
            if param_is_not_shared(weights) and param_is_not_tensor_parallel_duplicate(
                weights, getattr(each, "tp_group", None)
            ):
                yield weights
