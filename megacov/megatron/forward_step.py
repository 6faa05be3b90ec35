"""Forward and forward-backward passes over micro-batches, through Megatron's pipeline schedules.

Shape legend: b sequences and s positions of a micro-batch, t its response tokens, v/tp local vocabulary shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megacov.ops import vocab_parallel_log_probs_and_entropy
from megacov.types import LossOutput, MicroBatch

TokenLoss = Callable[[int, Tensor, Tensor], LossOutput]


@dataclass(frozen=True)
class TokenStatistics:
    """Of the response tokens of one micro-batch, detached.

    log_probs: [t] float32 at the rollout temperature.
    entropy: [t] float32 nats at the rollout temperature.
    entropy_t1: [t] float32 nats at temperature 1; None where it was not asked for.
    """

    log_probs: Tensor
    entropy: Tensor
    entropy_t1: Tensor | None


@dataclass(frozen=True)
class LogitsReader:
    """How logits become log-probs: everything that both passes must agree on.

    tp_group: ranks that hold the other vocabulary shards.
    vocab_size: real vocabulary; ids from there on are padding.
    temperature: of the rollout.
    """

    tp_group: Any
    vocab_size: int
    temperature: float

    def read(
        self, logits: Tensor, micro_batch: MicroBatch, *, temperature: float, entropy_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of the response tokens.

        Collectives: those of `vocab_parallel_log_probs_and_entropy`.
        Gradient: to the logits, as there.

        Args:
            logits: [b, s, v/tp] float.
            micro_batch: says which positions are response tokens.
            temperature: divides the logits.
            entropy_grad: whether entropy carries a gradient.

        Returns:
            log_probs [t] and entropy [t], float32.
        """
        targets = torch.roll(micro_batch.tokens, -1, dims=1)
        log_probs, entropy = vocab_parallel_log_probs_and_entropy(
            logits,
            targets,
            tp_group=self.tp_group,
            temperature=temperature,
            entropy_grad=entropy_grad,
            vocab_size=self.vocab_size,
        )
        at = (micro_batch.rows, micro_batch.columns)
        return log_probs[at], entropy[at]


def _statistics(
    reader: LogitsReader, with_entropy_t1: bool, micro_batch: MicroBatch, logits: Tensor, **kwargs: Any
) -> TokenStatistics:
    read = partial(reader.read, logits, micro_batch, entropy_grad=False)
    log_probs, entropy = read(temperature=reader.temperature)
    if not with_entropy_t1:
        return TokenStatistics(log_probs, entropy, None)
    return TokenStatistics(log_probs, entropy, entropy if reader.temperature == 1.0 else read(temperature=1.0)[1])


def _run(
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    loss_func: Callable[[int, MicroBatch], Callable[..., Any]],
    *,
    forward_only: bool,
) -> list[Any]:
    """One pass of Megatron's schedule; returns what `loss_func` made of each micro-batch, on the last stage only."""
    device = next(model.parameters()).device

    def step(items: Iterator[tuple[int, MicroBatch]], stage: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        index, micro_batch = next(items)
        micro_batch = micro_batch.to(device)
        positions = torch.arange(micro_batch.tokens.shape[1], device=device).expand_as(micro_batch.tokens)
        return stage(micro_batch.tokens, positions, None), loss_func(index, micro_batch)

    # seq_length is not read: variable_seq_lengths makes the stages tell each other each micro-batch's shape.
    results: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(enumerate(micro_batches)),
        model=model,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=micro_batches[0].tokens.shape[0],
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )
    return results


@torch.no_grad()
def forward_only(
    model: nn.Module, micro_batches: Sequence[MicroBatch], reader: LogitsReader, *, with_entropy_t1: bool
) -> list[TokenStatistics]:
    """Log-probs and entropy of every response token, one forward pass a micro-batch.

    Collectives: Megatron's pipeline and tensor-parallel communication; then those of the op, micro-batch by
    micro-batch. The number of micro-batches may differ between data-parallel ranks.

    Args:
        model: this rank's shard.
        micro_batches: of this data-parallel rank, at least one.
        reader: temperature, vocabulary and group.
        with_entropy_t1: also take the entropy at temperature 1, another pass over the logits if that of the rollout
            is another.

    Returns:
        One record a micro-batch on the last pipeline stage, nothing on the others.
    """
    statistics = partial(_statistics, reader, with_entropy_t1)
    return _run(model, micro_batches, lambda index, mb: partial(statistics, mb), forward_only=True)


def forward_backward(
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    reader: LogitsReader,
    token_loss: TokenLoss,
    *,
    entropy_grad: bool,
) -> list[LossOutput]:
    """Add the gradient of the loss of every micro-batch to this rank's gradient buffer, and sum it over replicas.

    Losses are added, never averaged: their token weights already hold the denominator of the optimizer step.

    Collectives: as `forward_only`; then Megatron's gradient reduction over dp_cp, and over the embedding group where
    first and last stage share weights.
    Gradient: to the model, through what `token_loss` makes of log_probs and, with entropy_grad, of entropy.

    Args:
        model: this rank's shard in Megatron's DistributedDataParallel.
        micro_batches: of this data-parallel rank, at least one.
        reader: temperature, vocabulary and group.
        token_loss: (index of the micro-batch, log_probs [t], entropy [t]) -> its loss.
        entropy_grad: whether entropy carries a gradient.

    Returns:
        Detached losses and metrics, one a micro-batch, on the last pipeline stage; nothing on the others.
    """

    def loss(index: int, micro_batch: MicroBatch, logits: Tensor) -> tuple[Tensor, Tensor, LossOutput]:
        log_probs, entropy = reader.read(logits, micro_batch, temperature=reader.temperature, entropy_grad=entropy_grad)
        output = token_loss(index, log_probs, entropy)
        num_tokens = micro_batch.loss_mask.sum().to(torch.int)
        return output.loss, num_tokens, LossOutput(output.loss.detach(), output.metrics)

    return _run(model, micro_batches, lambda index, mb: partial(loss, index, mb), forward_only=False)
