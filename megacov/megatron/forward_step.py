"""Forward and forward-backward passes over micro-batches, through Megatron's pipeline schedules.

Shape legend: b rows and s positions of a micro-batch on this context-parallel rank, t the response tokens it predicts,
v/tp local vocabulary shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config
from torch import Tensor, nn

from megacov.launch.heartbeat import beat
from megacov.megatron.kept_forwards import GradientsOnly, KeptForwards
from megacov.megatron.logits_reader import LogitsReader, TokenStatistics
from megacov.megatron.output_layer import is_last, read_logits, whole_hidden_and_weight, without_output_layer
from megacov.types import LossOutput, MicroBatch

TokenLoss = Callable[[int, Tensor, Tensor], LossOutput]
BetweenPasses = Callable[[list[Tensor], list[Tensor]], None]
"""Called on the last stage once all forwards of an optimizer step have run, with the detached log-probs and entropies
[t] of every micro-batch."""
FurtherPass = Callable[[], tuple[Sequence[MicroBatch], TokenLoss] | None]
"""Called on every rank between two backward passes; gives the micro-batches and the loss of the second, or None on all
ranks for no second pass."""


def _statistics(
    reader: LogitsReader,
    logits: Tensor,
    micro_batch: MicroBatch,
    *,
    with_entropy_t1: bool,
    with_sums: bool,
    min_p: float | None,
) -> TokenStatistics:
    read = partial(reader.read, logits, micro_batch, entropy_grad=False)
    square_sum = square_log_sum = None
    if with_sums:
        log_probs, entropy, square_sum, square_log_sum = reader.read_sums(logits, micro_batch)
    else:
        log_probs, entropy = read()
    entropy_t1 = None
    if with_entropy_t1:
        is_at_t1 = reader.temperature == 1.0 and micro_batch.temperatures is None
        entropy_t1 = entropy if is_at_t1 else read(temperature=1.0)[1]
    filtered = None if min_p is None else reader.read_filtered(logits, micro_batch, min_p=min_p)
    return TokenStatistics(log_probs, entropy, entropy_t1, square_sum, square_log_sum, filtered)


def _packed_seq_params(micro_batch: MicroBatch) -> PackedSeqParams | None:
    if micro_batch.cu_seqlens is None:
        return None
    ends, longest = micro_batch.cu_seqlens, micro_batch.max_seqlen
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def _kept(
    keep: KeptForwards, stage: nn.Module, index: int, forward: Callable[[], Tensor], read: Callable[..., Any]
) -> tuple[Tensor, Callable[..., Any]]:
    """Run a forward and keep its graph; on the last stage it is kept once `read` has made log-probs of its logits."""
    if not is_last(stage):
        output = forward()
        keep.add(stage, index, output)
        return output, read
    if get_model_config(stage).recompute_granularity != "full":
        return forward(), keep.adding(stage, index, read)

    def read_hidden(hidden: Tensor, **kwargs: Any) -> Any:
        return read_logits(stage, hidden, partial(read, **kwargs))

    with without_output_layer(stage):
        return forward(), keep.adding(stage, index, read_hidden)


def _gradients_only(stage: nn.Module, kept: KeptForwards) -> dict[str, Any]:
    """Arguments of Megatron's schedule that keep it from sending activations which the kept forwards have sent."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return {"p2p_communicator": GradientsOnly(stage, kept.received()), "pg_collection": groups}


def _run(
    chunks: Sequence[nn.Module],
    micro_batches: Sequence[MicroBatch],
    loss_func: Callable[[int, MicroBatch], Callable[..., Any]],
    *,
    forward_only: bool,
    without_logits: bool = False,
    keep: KeptForwards | None = None,
    resume: KeptForwards | None = None,
) -> list[Any]:
    """One pass of Megatron's schedule; returns what `loss_func` made of each micro-batch, on the last stage only.

    `without_logits` gives it the hidden states in place of the logits.
    `keep` receives the graph of each forward. If whole layers are recomputed, the output layer is too there.
    `resume` gives the outputs that an earlier pass has kept, in place of the model's own.
    """
    device = next(chunks[0].parameters()).device

    def step(items: Iterator[tuple[int, MicroBatch]], stage: nn.Module) -> tuple[Any, Callable[..., Any]]:
        beat()
        index, micro_batch = next(items)
        micro_batch = micro_batch.to(device)
        if resume is not None:
            return resume.resume(stage, index), loss_func(index, micro_batch)
        packed = _packed_seq_params(micro_batch)
        forward = partial(stage, micro_batch.tokens, micro_batch.positions, None, packed_seq_params=packed)
        read = loss_func(index, micro_batch)
        if without_logits and is_last(stage):
            with without_output_layer(stage):
                return forward(), read
        return (forward(), read) if keep is None else _kept(keep, stage, index, forward, read)

    # Every virtual stage processes the same micro-batches. Megatron ignores seq_length: with variable_seq_lengths the
    # stages send each other the shape of each micro-batch.
    results: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[iter(enumerate(micro_batches)) for _ in chunks],
        model=list(chunks),
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=micro_batches[0].tokens.shape[0],
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
        **({} if resume is None else _gradients_only(chunks[0], resume)),
    )
    return results


@torch.no_grad()
def forward_only(
    chunks: Sequence[nn.Module],
    micro_batches: Sequence[MicroBatch],
    reader: LogitsReader,
    *,
    with_entropy_t1: bool,
    num_with_sums: int = 0,
    min_p: float | None = None,
    without_logits: bool = False,
) -> list[TokenStatistics]:
    """Log-probs and entropy of every response token, with one forward pass per micro-batch.

    Collectives: Megatron's pipeline-, context- and tensor-parallel communication; then those of the op, micro-batch by
    micro-batch; without logits and with sequence parallelism, before it an all-gather of the hidden states. The number
    of micro-batches may differ between data-parallel replicas, but not within one. With several virtual stages it is a
    multiple of the pipeline-parallel size.

    Args:
        chunks: the virtual stages of this rank.
        micro_batches: one or more micro-batches of this data-parallel rank.
        reader: temperature, vocabulary and group.
        with_entropy_t1: also compute the entropy at temperature 1, with a second pass over the logits unless all
            samples were drawn at 1.
        num_with_sums: the first micro-batches, of which the sums of squared probabilities are computed too.
        min_p: filter of the filtered log-probs, which cost another pass over the logits; None for none of these.
        without_logits: whether to go from hidden states to log-probs a chunk at a time. Results differ by rounding.

    Returns:
        One record per micro-batch on the last pipeline stage, an empty list on the others.
    """

    wanted: dict[str, Any] = {"with_entropy_t1": with_entropy_t1, "min_p": min_p}

    def read(index: int, micro_batch: MicroBatch, output: Tensor, **kwargs: Any) -> TokenStatistics:
        with_sums = index < num_with_sums
        if without_logits:
            hidden, weight = whole_hidden_and_weight(chunks[-1], output)
            return reader.read_hidden(hidden, weight, micro_batch, **wanted, with_sums=with_sums)
        return _statistics(reader, output, micro_batch, **wanted, with_sums=with_sums)

    return _run(
        chunks,
        micro_batches,
        lambda index, mb: partial(read, index, mb),
        forward_only=True,
        without_logits=without_logits,
    )


def forward_backward(
    chunks: Sequence[nn.Module],
    micro_batches: Sequence[MicroBatch],
    reader: LogitsReader,
    token_loss: TokenLoss,
    *,
    entropy_grad: bool,
    between_passes: BetweenPasses | None = None,
) -> list[LossOutput]:
    """Add the loss gradient of every micro-batch to this rank's gradient buffer, and sum it over replicas.

    Losses are summed, never averaged: their token weights already include the denominator of the optimizer step.

    Collectives: as `forward_only`; then Megatron's gradient reduction over dp_cp, and over the embedding group where
    first and last stage share weights.
    Gradient: to the model, through `token_loss` of log_probs and, with entropy_grad, of entropy.

    Args:
        chunks: the virtual stages of this rank in Megatron's DistributedDataParallel.
        micro_batches: one or more micro-batches of this data-parallel rank.
        reader: temperature, vocabulary and group.
        token_loss: (index of the micro-batch, log_probs [t], entropy [t]) -> its loss.
        entropy_grad: whether entropy carries a gradient.
        between_passes: called before the first loss. All graphs are kept until their backwards, so memory grows with
            the number of micro-batches.

    Returns:
        Detached losses and metrics, one per micro-batch, on the last pipeline stage; an empty list on the others.
    """

    def read(micro_batch: MicroBatch, logits: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return reader.read(logits, micro_batch, entropy_grad=entropy_grad)

    def loss(index: int, micro_batch: MicroBatch, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, LossOutput]:
        output = token_loss(index, *values)
        num_tokens = micro_batch.loss_mask.sum().to(torch.int)
        return output.loss, num_tokens, LossOutput(output.loss.detach(), output.metrics)

    if between_passes is None:
        return _run(
            chunks,
            micro_batches,
            lambda index, mb: lambda logits: loss(index, mb, read(mb, logits)),
            forward_only=False,
        )
    kept = KeptForwards()
    values = _run(chunks, micro_batches, lambda index, mb: partial(read, mb), forward_only=True, keep=kept)
    log_probs, entropies = ([found[i].detach() for found in values] for i in (0, 1))
    del values  # each graph is freed by its backward
    between_passes(log_probs, entropies)
    return _run(chunks, micro_batches, lambda index, mb: partial(loss, index, mb), forward_only=False, resume=kept)
