"""Memory that each rank holds, permanently and for a moment, while it loads a model. Nothing is allocated.

The tables and layouts are those that load the weights, applied to tensors on the meta device, so a plan can be wrong
only where loading is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacov.megatron.families.family import WeightRule
from megacov.megatron.families.shape import ModelShape
from megacov.megatron.model import padded_vocab_size
from megacov.megatron.weight_table import EMBEDDING, owner_of_expert, owner_stage, weight_rules

# Megatron accumulates gradients in a float32 buffer that it allocates together with the model.
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class RankPlan:
    """One rank while it loads. Ranks with another data- or expert-parallel index hold the same amount.

    weight_bytes, gradient_bytes: memory on the device, from the beginning.
    reading_bytes: most host memory at a time: the parts of one parameter that were read, and the parameter made of
        them.
    largest: Hugging Face tensors of the parameter that takes most host memory.
    """

    stage: int
    tensor_rank: int
    num_layers: int
    num_parameters: int
    weight_bytes: int
    gradient_bytes: int
    reading_bytes: int
    largest: str

    @property
    def peak_bytes(self) -> int:
        """Sum of all three, which share one memory on a CPU."""
        return self.weight_bytes + self.gradient_bytes + self.reading_bytes


def plan_loading(
    shape: ModelShape,
    *,
    tensor: int,
    pipeline: int,
    virtual_pipeline: int,
    expert: int,
    vocab_divisible_by: int,
    dtype: torch.dtype,
) -> list[RankPlan]:
    """Plan for every rank that is not a copy of another.

    Args:
        shape: shape of a model that `check_split` and `check_expert_split` accept for this layout.
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        virtual_pipeline: number of runs of layers on each pipeline rank.
        expert: expert-parallel size.
        vocab_divisible_by: number of which the rows of a vocabulary shard are a multiple.
        dtype: dtype of the weights, on the ranks and in the files.

    Returns:
        One plan for each pipeline stage and tensor-parallel rank, in that order.
    """
    padded = padded_vocab_size(shape.vocab_size, divisible_by=vocab_divisible_by, tp_size=tensor)
    rules_by_stage: list[list[WeightRule]] = [[] for _ in range(pipeline)]
    for rule in weight_rules(shape, padded_vocab_size=padded):
        if owner_of_expert(rule, shape, expert_parallel=expert) not in (None, 0):
            continue
        stage = owner_stage(rule, shape, pipeline=pipeline, virtual_pipeline=virtual_pipeline)
        stages = {stage}
        if rule.names == (EMBEDDING,) and shape.tie_word_embeddings:
            stages.add(pipeline - 1)
        for holder in stages:
            rules_by_stage[holder].append(rule)
    return [
        _plan_rank(rules, stage, rank, tensor, dtype)
        for stage, rules in enumerate(rules_by_stage)
        for rank in range(tensor)
    ]


def _plan_rank(rules: Sequence[WeightRule], stage: int, rank: int, num_ranks: int, dtype: torch.dtype) -> RankPlan:
    num_parameters, reading_bytes, largest = 0, 0, ""
    for rule in rules:
        place = (rank, num_ranks) if rule.expert is None else (0, 1)
        parts = [_part(rule, size, *place, dtype) for _, size in rule.sources]
        shard = rule.layout.shard(parts, place[1])
        num_parameters += shard.numel()
        held = sum(part.nbytes for part in parts) + (0 if shard is parts[0] else shard.nbytes)
        if held > reading_bytes:
            reading_bytes, largest = held, ", ".join(name for name, _ in rule.sources)
    return RankPlan(
        stage=stage,
        tensor_rank=rank,
        num_layers=len({rule.layer for rule in rules} - {None}),
        num_parameters=num_parameters,
        weight_bytes=num_parameters * dtype.itemsize,
        gradient_bytes=num_parameters * GRADIENT_BYTES,
        reading_bytes=reading_bytes,
        largest=largest,
    )


def _part(rule: WeightRule, size: Sequence[int], rank: int, num_ranks: int, dtype: torch.dtype) -> Tensor:
    start, stop = rule.layout.part_range(size, rank, num_ranks)
    held = list(size)
    if rule.layout.dim is not None:
        held[rule.layout.dim] = stop - start
    return torch.empty(held, dtype=dtype, device="meta")
