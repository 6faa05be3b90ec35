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
    """Of the data-parallel rank that has most, in one optimizer step.

    squares: sum of the squares of the lengths of its sequences.
    passes: micro-batches.
    """

    tokens: int
    squares: int
    passes: int


@dataclass(frozen=True)
class Training:
    """How the trainer runs.

    updates: optimizer steps of a rollout batch.
    selects: whether later ones need a forward pass for the selection of tokens.
    saves_every: steps between checkpoints; 0 for never.
    staging: bytes that a GPU copies to main memory for a checkpoint.
    """

    layout: Layout
    recompute: Recompute
    micro_batch_tokens: int
    updates: int
    selects: bool
    saves_every: int
    staging: float


@dataclass(frozen=True)
class TrainerSeconds:
    """Of a rollout batch, phase by phase; a pass counts its arithmetic and the messages of its layers.

    log_probs: the forward pass that finds old log-probs.
    selection: a forward pass before each later update, and the collectives of the global selection.
    head: entropy and log-probs over vocabulary shards, in all passes.
    bubble: what the pipeline waits at both ends of all passes.
    data_parallel: gradients and parameters between data-parallel ranks.
    checkpoint: the copy to main memory, shared out over steps.
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
        """One after the other, as they are done."""
        return float(sum(astuple(self)))


def deal(lengths: Sequence[int], data: int) -> list[list[int]]:
    """As `megacov.data.packing.balance`, for thousands of sequences: longest first, each to the lightest rank.

    Args:
        lengths: tokens of each sequence.
        data: data-parallel ranks.

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
    """As many as `megacov.data.packing.cut` makes of packed sequences.

    Args:
        lengths: tokens of each sequence of a rank.
        micro_batch_tokens: of a forward pass; a longer sequence has one to itself.

    Returns:
        Micro-batches.
    """
    # With as many passes as sequences, each has its own.
    number = max(1, min(len(lengths), -(-sum(lengths) // micro_batch_tokens)))
    while any(len(part) > 1 and sum(part) > micro_batch_tokens for part in deal(lengths, number)):
        number += 1
    return sum(1 for part in deal(lengths, number) if part)


@lru_cache(maxsize=4096)
def fullest_rank(lengths: tuple[int, ...], *, data: int, micro_batch_tokens: int) -> Work:
    """Deal an optimizer step out as megacov does.

    Args:
        lengths: tokens of each sequence.
        data: data-parallel ranks.
        micro_batch_tokens: of a forward pass.

    Returns:
        The work of the rank with most tokens.
    """
    own = max(deal(lengths, data), key=sum)
    return Work(sum(own), sum(n * n for n in own), count_passes(own, micro_batch_tokens))


def bubble_share(layout: Layout, passes: int) -> float:
    """Of the time of all passes, what the first and last stages wait on top.

    Args:
        layout: of the trainer.
        passes: micro-batches in one run through the pipeline.

    Returns:
        (stages - 1) / (virtual stages x micro-batches), arXiv 2104.04473.
    """
    return (layout.pipeline - 1) / (layout.virtual_pipeline * passes)


def pass_seconds(model: Model, given: Assumptions, layout: Layout, work: Work) -> float:
    """Forward over all micro-batches, without bubble and without the head's own kernels; a backward takes two of these.

    Args:
        model: what is trained.
        given: rates.
        layout: of the trainer.
        work: of the fullest rank.

    Returns:
        Seconds.
    """
    gpu, shares, costs = given.gpu, given.shares, given.costs
    cuts = layout.tensor * layout.context * layout.pipeline
    arithmetic = model.forward_flops(work.tokens, work.squares) / cuts / (gpu.flops * shares.training)
    layers, tokens = model.layers / layout.pipeline, work.tokens / layout.context
    link, port = gpu.nvlink * shares.nvlink, gpu.network * shares.network
    # Two all-gathers and two reduce-scatters a layer, or two all-reduces of as many bytes.
    messages = layers * tokens * 4 * model.hidden_size * 2 * (1 - 1 / layout.tensor) / link
    messages += 4 * layers * work.passes * given.latency(layout.tensor)
    if layout.context > 1:
        keys = layers * tokens * 2 * 2 * model.key_size / layout.tensor * (layout.context - 1)
        messages += keys / (link if layout.tensor * layout.context <= 8 else port)
    if layout.pipeline > 1:
        messages += tokens * 2 * model.hidden_size / layout.sequence_share / port
    return arithmetic + messages + work.passes * costs.micro_batch / layout.pipeline


def train_seconds(model: Model, given: Assumptions, training: Training, lengths: tuple[int, ...]) -> TrainerSeconds:
    """All phases of a rollout batch.

    Args:
        model: what is trained.
        given: rates.
        training: how.
        lengths: tokens of the sequences of the optimizer step that has most.

    Returns:
        Seconds by phase.
    """
    layout, updates = training.layout, training.updates
    work = fullest_rank(lengths, data=layout.data, micro_batch_tokens=training.micro_batch_tokens)
    forward = pass_seconds(model, given, layout, work)
    # Old log-probs of all optimizer steps go through the pipeline in one run.
    whole, single = bubble_share(layout, work.passes * updates), bubble_share(layout, work.passes)
    backward = 4 if training.recompute == "full" else 3
    again = updates - 1 if training.selects else 0
    selecting = 10 * updates * given.latency(layout.data * layout.context) if training.selects else 0.0
    passes = updates * forward
    return TrainerSeconds(
        log_probs=passes,
        selection=again * forward + selecting,
        head=(1 + again / updates + 3) * updates * _head(model, given, layout, work),
        update=passes * backward,
        bubble=passes * whole + (again * forward + passes * backward) * single,
        data_parallel=updates * _data_parallel(model, given, layout),
        optimizer=updates * _optimizer(model, given, layout),
        checkpoint=training.staging / given.gpu.host / training.saves_every if training.saves_every else 0.0,
    )


def _head(model: Model, given: Assumptions, layout: Layout, work: Work) -> float:
    """One read of the logits (a backward pass reads and writes them), and four float32 a token from each rank."""
    tokens = work.tokens / layout.context
    logits = tokens * model.vocab_size / layout.tensor * 2 / (given.gpu.memory * given.shares.streaming)
    gathered = tokens * 16 * (layout.tensor - 1) / (given.gpu.nvlink * given.shares.nvlink)
    return logits + gathered + work.passes * given.latency(layout.tensor)


def _data_parallel(model: Model, given: Assumptions, layout: Layout) -> float:
    """Gradients are reduced and scattered in float32, parameters gathered in bfloat16; nothing is overlapped."""
    ranks = layout.optimizer_shards
    parameters = model.parameters / (layout.tensor * layout.pipeline)
    moved = (4 + 2) * parameters * (1 - 1 / ranks)
    return moved / (given.gpu.network * given.shares.network) + 2 * given.latency(ranks)


def _optimizer(model: Model, given: Assumptions, layout: Layout) -> float:
    """Of a parameter, its owner moves 34 bytes: gradient twice, moments and main copy both ways, the new weight.

    Every rank clears its gradients on top, 4 bytes each.
    """
    parameters = model.parameters / (layout.tensor * layout.pipeline)
    moved = parameters * (34 / layout.optimizer_shards + 4)
    return moved / (given.gpu.memory * given.shares.streaming)
