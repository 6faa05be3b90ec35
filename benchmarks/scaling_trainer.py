"""Seconds of the trainer's phases in a layout: passes through the pipeline, our own parts, optimizer and saves."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

from benchmarks.scaling_assumptions import Assumptions, Model
from megacov.plan import Layout
from megacov.plan.activations import Recompute


@dataclass(frozen=True)
class Work:
    """Work of the busiest data-parallel rank in one optimizer step.

    squares: sum of the squares of the lengths of its sequences.
    passes: number of micro-batches.
    """

    tokens: int
    squares: int
    passes: int


@dataclass(frozen=True)
class Training:
    """How the trainer runs.

    updates: number of optimizer steps of a rollout batch.
    selects: whether later optimizer steps select tokens by current log-probs.
    room: positions of an optimizer step whose activations a GPU can keep; if all fit, the backwards wait for the
        selection, and otherwise it takes a forward pass.
    position_bytes: what a GPU of the tightest stage keeps of each of them.
    saves_every: steps between checkpoints; 0 for no checkpoints.
    staging: bytes that a GPU copies to main memory for a checkpoint.
    corrected_share: positions of a second forward-backward over those of an optimizer step, dealt evenly, if gradients
        are corrected in place of the forward pass.
    """

    layout: Layout
    recompute: Recompute
    micro_batch_tokens: int
    updates: int
    selects: bool
    room: int
    position_bytes: float
    saves_every: int
    staging: float
    corrected_share: float | None = None


@dataclass(frozen=True)
class TrainerSeconds:
    """Seconds of a rollout batch by phase. A pass includes its arithmetic and the messages of its layers.

    log_probs: the forward pass that computes old log-probs.
    selection: a forward pass before each later update; or, where backwards wait for the selection, a second message of
        all activations between stages; or a forward and a backward over a share of the positions; and the collectives
        of the global selection.
    head: entropy and log-probs over vocabulary shards, in all passes.
    bubble: waiting time of the pipeline at both ends of all passes.
    data_parallel: messages of gradients and parameters between data-parallel ranks.
    checkpoint: the copy to main memory, averaged over steps.
    """

    log_probs: float
    selection: float
    head: float
    update: float
    bubble: float
    data_parallel: float
    optimizer: float
    checkpoint: float

    @property
    def total(self) -> float:
        """Sum of all phases, since they follow one another."""
        return float(sum(astuple(self)))


def deal(lengths: Sequence[int], data: int) -> list[list[int]]:
    """Assign sequences to ranks as `megacov.data.packing.balance` does, but fast enough for thousands of sequences.

    Args:
        lengths: number of tokens of each sequence. The longest comes first, and each goes to the rank with fewest
            tokens.
        data: number of data-parallel ranks.

    Returns:
        Lengths of the sequences of each rank.
    """
    parts: list[list[int]] = [[] for _ in range(data)]
    loads = [(0, part) for part in range(data)]
    for length in sorted(lengths, reverse=True):
        load, part = loads[0]
        parts[part].append(length)
        heapq.heapreplace(loads, (load + length, part))
    return parts


def count_passes(lengths: Sequence[int], micro_batch_tokens: int) -> int:
    """Count the micro-batches that `megacov.data.packing.cut` makes of packed sequences.

    Args:
        lengths: number of tokens of each sequence of a rank.
        micro_batch_tokens: most tokens of a forward pass; a longer sequence has a pass of its own.

    Returns:
        The number of micro-batches.
    """
    # With as many passes as sequences, each has its own.
    number = max(1, min(len(lengths), -(-sum(lengths) // micro_batch_tokens)))
    while any(len(part) > 1 and sum(part) > micro_batch_tokens for part in deal(lengths, number)):
        number += 1
    return sum(1 for part in deal(lengths, number) if part)


@lru_cache(maxsize=4096)
def fullest_rank(lengths: tuple[int, ...], *, data: int, micro_batch_tokens: int) -> Work:
    """Distribute an optimizer step over ranks as megacov does.

    Args:
        lengths: number of tokens of each sequence.
        data: number of data-parallel ranks.
        micro_batch_tokens: most tokens of a forward pass.

    Returns:
        The work of the rank with the most tokens.
    """
    own = max(deal(lengths, data), key=sum)
    return Work(sum(own), sum(n * n for n in own), count_passes(own, micro_batch_tokens))


def bubble_share(layout: Layout, passes: int) -> float:
    """Waiting time of the pipeline as a share of the time of all passes in one run through it.

    It is (stages - 1) / (virtual stages x micro-batches), arXiv 2104.04473.
    """
    return (layout.pipeline - 1) / (layout.virtual_pipeline * passes)


def pass_seconds(model: Model, given: Assumptions, layout: Layout, work: Work) -> float:
    """Seconds of the forward over all micro-batches, without bubble and the head's own kernels; a backward takes twice
    that.

    Args:
        model: the model that is trained.
        given: assumptions with the rates.
        layout: layout of the trainer.
        work: work of the busiest rank.

    Returns:
        Seconds.
    """
    gpu, shares, costs = given.gpu, given.shares, given.costs
    cuts = layout.tensor * layout.context * layout.pipeline
    arithmetic = model.forward_flops(work.tokens, work.squares) / cuts / (gpu.flops * shares.training)
    layers, tokens = model.layers / layout.pipeline, work.tokens / layout.context
    link, port = gpu.nvlink * shares.nvlink, gpu.network * shares.network
    # Each layer has two all-gathers and two reduce-scatters, or two all-reduces of as many bytes.
    messages = layers * tokens * 4 * model.hidden_size * 2 * (1 - 1 / layout.tensor) / link
    messages += 4 * layers * work.passes * given.latency(layout.tensor)
    if layout.context > 1:
        keys = layers * tokens * 2 * 2 * model.key_size / layout.tensor * (layout.context - 1)
        messages += keys / (link if layout.tensor * layout.context <= 8 else port)
    messages += _between_stages(model, given, layout, work)
    return arithmetic + messages + work.passes * costs.micro_batch / layout.pipeline


def defers(training: Training, work: Work) -> bool:
    """Whether the backwards of an optimizer step wait for the selection, as `selection.method: auto` decides."""
    return training.selects and work.tokens <= training.room * training.layout.context


def train_seconds(model: Model, given: Assumptions, training: Training, lengths: tuple[int, ...]) -> TrainerSeconds:
    """Simulate all phases of a rollout batch.

    Args:
        model: the model that is trained.
        given: assumptions with the rates.
        training: how the trainer runs.
        lengths: number of tokens of each sequence, in the optimizer step that has most.

    Returns:
        Seconds by phase.
    """
    layout, updates = training.layout, training.updates
    work = fullest_rank(lengths, data=layout.data, micro_batch_tokens=training.micro_batch_tokens)
    forward = pass_seconds(model, given, layout, work)
    # Old log-probs of all optimizer steps are computed in one run through the pipeline.
    whole, single = bubble_share(layout, work.passes * updates), bubble_share(layout, work.passes)
    backward = 4 if training.recompute == "full" else 3
    again: float = updates - 1 if training.selects and not defers(training, work) else 0
    # The quota, the covariance, its extremes, and nine digits.
    selecting = 12 * updates * given.latency(layout.data * layout.context) if training.selects else 0.0
    single_again = again * single
    if training.corrected_share is not None:
        # The pipeline fills and drains for a forward and a backward, however few micro-batches there are.
        again, single_again = again * training.corrected_share * backward, single_again * backward
    passes = updates * forward
    return TrainerSeconds(
        log_probs=passes,
        selection=again * forward + selecting,
        head=(1 + again / updates + 3) * updates * _head(model, given, layout, work),
        update=passes * backward,
        bubble=passes * whole + single_again * forward + passes * backward * single,
        data_parallel=updates * _data_parallel(model, given, layout),
        optimizer=updates * _optimizer(model, given, layout),
        checkpoint=training.staging / given.gpu.host / training.saves_every if training.saves_every else 0.0,
    )


def _between_stages(model: Model, given: Assumptions, layout: Layout, work: Work) -> float:
    """What a stage sends to the next in a forward over all micro-batches."""
    if layout.pipeline == 1:
        return 0.0
    port = given.gpu.network * given.shares.network
    return work.tokens / layout.context * 2 * model.hidden_size / layout.sequence_share / port


def _head(model: Model, given: Assumptions, layout: Layout, work: Work) -> float:
    """One read of the logits (a backward pass reads and writes them), and four float32 for each token and rank."""
    tokens = work.tokens / layout.context
    logits = tokens * model.vocab_size / layout.tensor * 2 / (given.gpu.memory * given.shares.streaming)
    gathered = tokens * 16 * (layout.tensor - 1) / (given.gpu.nvlink * given.shares.nvlink)
    return logits + gathered + work.passes * given.latency(layout.tensor)


def _data_parallel(model: Model, given: Assumptions, layout: Layout) -> float:
    """Gradients are reduce-scattered in float32 and parameters all-gathered in bfloat16, without any overlap."""
    ranks = layout.optimizer_shards
    parameters = model.parameters / (layout.tensor * layout.pipeline)
    moved = (4 + 2) * parameters * (1 - 1 / ranks)
    return moved / (given.gpu.network * given.shares.network) + 2 * given.latency(ranks)


def _optimizer(model: Model, given: Assumptions, layout: Layout) -> float:
    """The owner of a parameter moves 34 bytes: gradient twice, moments and main copy both ways, and the new weight.

    In addition, every rank clears its gradients, 4 bytes for each parameter.
    """
    parameters = model.parameters / (layout.tensor * layout.pipeline)
    moved = parameters * (34 / layout.optimizer_shards + 4)
    return moved / (given.gpu.memory * given.shares.streaming)
