"""The policy: a sharded model with its optimizer, and what a trainer does with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from megacov.megatron.checkpoint import load_checkpoint
from megacov.megatron.entropy_slope import EntropySlope
from megacov.megatron.forward_step import BetweenPasses, FurtherPass, TokenLoss, forward_backward, forward_only
from megacov.megatron.gradients import own_gradient_is_finite, summed_once
from megacov.megatron.logits_reader import LogitsReader, TokenStatistics
from megacov.megatron.model import DTYPES, ModelSettings, build_model, use_transformer_engine, wrap_for_training
from megacov.megatron.model_shape import ModelShape
from megacov.megatron.optimizer import AdamSettings, build_optimizer, step_with_norm
from megacov.megatron.optimizer_state import adam_steps
from megacov.megatron.weights import gather_hf_weights, load_hf_weights, own_shards
from megacov.parallel.groups import ParallelGroups
from megacov.types import LossOutput, MicroBatch


@dataclass(frozen=True)
class UpdateResult:
    """Result of one optimizer step, which is not applied if its gradient is not finite.

    grad_norm: global norm before clipping, equal on all ranks.
    lr: learning rate.
    outputs: losses and metrics of the micro-batches, on the last stage.
    own_gradient_is_finite: False if this rank's own gradient is not finite; computed only for a step left out.
    """

    grad_norm: float
    lr: float
    outputs: list[LossOutput]
    own_gradient_is_finite: bool = True

    @property
    def is_applied(self) -> bool:
        """Whether the step was applied; the same on all ranks."""
        return math.isfinite(self.grad_norm)


@dataclass
class Policy:
    """This rank's shard of the policy. Every method is a collective: all ranks call it, in the same order.

    `chunks` are the virtual pipeline stages of this rank: one, unless `parallel.virtual_pipeline` is larger.
    `fused_output`: forward-only passes go from hidden states to log-probs without logits in memory.
    """

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    shape: ModelShape
    groups: ParallelGroups
    reader: LogitsReader
    reference: list[Tensor] | None
    fused_output: bool = False

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.chunks[0].parameters()).device

    def log_probs(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        with_entropy_t1: bool = False,
        num_with_sums: int = 0,
        min_p: float | None = None,
    ) -> list[TokenStatistics]:
        """Log-probs and entropy under the current weights, forward only.

        Args:
            micro_batches: micro-batches of this data-parallel rank.
            with_entropy_t1: whether to compute the entropy at temperature 1 too.
            num_with_sums: as in `forward_only`.
            min_p: as there.

        Returns:
            One record per micro-batch on the last pipeline stage, an empty list on the others.
        """
        return forward_only(
            self.chunks,
            micro_batches,
            self.reader,
            with_entropy_t1=with_entropy_t1,
            num_with_sums=num_with_sums,
            min_p=min_p,
            without_logits=self.fused_output,
        )

    def reference_log_probs(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Log-probs under the weights that the run began with, forward only.

        Args:
            micro_batches: micro-batches of this data-parallel rank.

        Returns:
            [t] float32 per micro-batch on the last pipeline stage, an empty list on the others.
        """
        with self._reference_weights():
            return [statistics.log_probs for statistics in self.log_probs(micro_batches)]

    @contextmanager
    def _reference_weights(self) -> Iterator[None]:
        """Swap the reference weights in for the duration of the context."""
        assert self.reference is not None, "built without a reference"
        own = _copies(self.chunks)
        _copy_into(self.chunks, self.reference)
        try:
            yield
        finally:
            _copy_into(self.chunks, own)

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        token_loss: TokenLoss,
        *,
        entropy_grad: bool,
        between_passes: BetweenPasses | None = None,
        further_pass: FurtherPass | None = None,
    ) -> UpdateResult:
        """Make one optimizer step on the sum of the losses of all micro-batches of all data-parallel ranks.

        If the gradient norm is not finite, weights, optimizer and learning rate stay unchanged on all ranks.

        Args:
            micro_batches: micro-batches of this data-parallel rank.
            token_loss: (index of the micro-batch, log_probs [t], entropy [t]) -> its loss.
            entropy_grad: whether entropy carries a gradient.
            between_passes: as in `forward_backward`.
            further_pass: called once all backwards have run; the gradient of its micro-batches is added before the sum
                over replicas, which is then made once.

        Returns:
            Gradient norm, learning rate and this rank's losses, without those of a further pass.
        """
        self._zero_gradients()
        with nullcontext() if further_pass is None else summed_once(self.chunks):
            outputs = forward_backward(
                self.chunks,
                micro_batches,
                self.reader,
                token_loss,
                entropy_grad=entropy_grad,
                between_passes=between_passes,
            )
            further = None if further_pass is None else further_pass()
            if further is not None:
                forward_backward(self.chunks, further[0], self.reader, further[1], entropy_grad=entropy_grad)
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        lr = float(self.optimizer.param_groups[0]["lr"])
        if not math.isfinite(grad_norm):
            is_finite = own_gradient_is_finite(self.chunks)
            self._zero_gradients()
            return UpdateResult(grad_norm, lr, outputs, own_gradient_is_finite=is_finite)
        step_with_norm(self.optimizer, grad_norm)
        self.scheduler.step(increment=1)
        return UpdateResult(grad_norm, lr, outputs)

    def entropy_slope(self, micro_batches: Sequence[MicroBatch], masks: Sequence[Tensor]) -> EntropySlope:
        """Differentiate a sum of entropies by the weights, with one forward and one backward pass.

        Call it between two optimizer steps: it uses the gradient buffers, and leaves them empty.

        Args:
            micro_batches: micro-batches of this data-parallel rank.
            masks: [t] bool a micro-batch, the tokens whose entropies are added up; empty off the last stage.

        Returns:
            The derivative of the sum over all ranks, to be taken along the next optimizer step.
        """

        def masked_entropy(index: int, log_probs: Tensor, entropy: Tensor) -> LossOutput:
            return LossOutput(entropy.where(masks[index], 0.0).sum(), {})

        self._zero_gradients()
        forward_backward(self.chunks, micro_batches, self.reader, masked_entropy, entropy_grad=True)
        self.optimizer.prepare_grads()
        slope = EntropySlope(self.optimizer, group=self.groups.world)
        self._zero_gradients()
        return slope

    def _zero_gradients(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def progress(self) -> dict[str, int]:
        """Steps so far, as "adam_steps" and "scheduler_steps". Call it on a rank with some of the optimizer's state."""
        return {"adam_steps": adam_steps(self.optimizer), "scheduler_steps": int(self.scheduler.num_steps)}

    def restore(self, folder: Path, *, adam_steps: int, scheduler_steps: int) -> None:
        """Continue from a checkpoint, whatever layout wrote it.

        Collectives: those of `load_checkpoint`.

        Args:
            folder: checkpoint with verified files.
            adam_steps: steps that Adam had made when it was saved.
            scheduler_steps: steps that the schedule had made.

        Raises:
            CheckpointError: it cannot be loaded into this policy.
        """
        load_checkpoint(self.chunks, self.optimizer, folder, adam_steps=adam_steps)
        self.scheduler.num_steps = scheduler_steps
        self.scheduler.step(increment=0)

    def hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole model by Hugging Face name. Every rank iterates to the end, but only rank 0 receives tensors.

        Returns:
            Iterator of (name, tensor on the model's device); each tensor is assembled on demand.
        """
        return gather_hf_weights(self.chunks, self.shape, self.groups)

    def own_shards(self) -> dict[str, Tensor]:
        """This rank's part of each parameter by Megatron's name, as `megacov.plan.reshard` names it. No collective."""
        return own_shards(self.chunks, self.shape)


def _copies(chunks: Sequence[torch.nn.Module]) -> list[Tensor]:
    return [parameter.detach().clone() for chunk in chunks for parameter in chunk.parameters()]


@torch.no_grad()
def _copy_into(chunks: Sequence[torch.nn.Module], values: Sequence[Tensor]) -> None:
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def build_policy(
    path: str | Path,
    shape: ModelShape,
    groups: ParallelGroups,
    settings: ModelSettings,
    adam: AdamSettings,
    *,
    temperature: float,
    with_reference: bool,
) -> Policy:
    """Build this rank's shard, load its weights from a Hugging Face folder, and build its optimizer.

    Args:
        path: Hugging Face model folder (config.json and safetensors).
        shape: sizes of the model.
        groups: process groups of this rank.
        settings: dtype, padding and parallel features.
        adam: hyperparameters of the optimizer and its schedule.
        temperature: rollout temperature, at which log-probs and entropy are computed.
        with_reference: whether to keep a copy of these weights for a reference KL.

    Returns:
        The policy.

    Raises:
        ConfigError: Transformer Engine is required but missing.
        DataError: the weights cannot be read.
    """
    transformer_engine = use_transformer_engine(settings.transformer_engine, group=groups.control)
    chunks = wrap_for_training(build_model(shape, settings, groups, transformer_engine=transformer_engine))
    load_hf_weights(chunks, path, shape, groups)
    optimizer, scheduler = build_optimizer(chunks, adam, dtype=DTYPES[settings.dtype])
    reference = _copies(chunks) if with_reference else None
    reader = LogitsReader(tp_group=groups.tp, vocab_size=shape.vocab_size, temperature=temperature)
    return Policy(chunks, optimizer, scheduler, shape, groups, reader, reference, settings.fused_output)
