"""Layouts of the same GPUs that fit, the fastest first by an estimate of one optimizer step.

The estimate is for ranking layouts and not for predicting times. It adds up arithmetic at a fixed share of the peak,
the messages of tensor and context parallelism over a node's links or the network, the reduction of gradients, and the
bubble of the pipeline (Narayanan et al., arXiv 2104.04473). The constants are those of an H100 node; only their ratios
matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from megacov.plan.activations import Recompute
from megacov.plan.batch import Batch, BatchPlan, plan_batch
from megacov.plan.layout import Cluster, Layout
from megacov.plan.memory import StageMemory, TrainerSettings, plan_trainer
from megacov.plan.model_sizes import ModelSizes
from megacov.plan.parameters import total_parameters

_FLOPS = 0.4 * 989e12  # bfloat16, at the share of the peak that well-run training reaches
_LINK_BYTES_PER_S = 0.7 * 450e9  # NVLink 4, one direction
_NETWORK_BYTES_PER_S = 0.7 * 50e9  # 400 Gb/s for each GPU
_CONTEXTS = (1, 2, 4, 8, 16)
Fits = Callable[[Layout, Recompute, int, Sequence[StageMemory]], bool]
"""Whether a run may have this layout and recomputation, tokens of a micro-batch, and memory of each stage."""

# Attention writes no scores, so recomputing it alone saves next to nothing.
_RECOMPUTES: tuple[Recompute, ...] = ("none", "full")


@dataclass(frozen=True)
class Suggestion:
    """A layout that fits.

    peak: bytes of the fullest GPU.
    seconds: estimate of an optimizer step on the longest sequences, for ranking.
    """

    layout: Layout
    recompute: Recompute
    micro_batch_tokens: int
    micro_batches: int
    peak: int
    seconds: float


def suggest(
    sizes: ModelSizes, layout: Layout, batch: Batch, settings: TrainerSettings, cluster: Cluster, *, fits: Fits
) -> list[Suggestion]:
    """Try every layout of the same number of GPUs.

    Args:
        sizes: sizes of the model.
        layout: layout that the user asked for. Its number of ranks is kept; so are its virtual stages and expert
            parallelism where possible.
        batch: sizes of the batch. Micro-batches of one, two and four longest sequences are tried as well.
        settings: how the trainer runs.
        cluster: the machines.
        fits: called for each layout into which the model can be split.

    Returns:
        The layouts that fit, fastest first. Within one percent, the layout with the least context and pipeline
        parallelism comes first. For equal layout and recomputation, only the fastest micro-batch is listed.
    """
    best: dict[tuple[Layout, Recompute], Suggestion] = {}
    for candidate in _layouts(sizes, layout, batch, cluster):
        for recompute, tokens in product(_RECOMPUTES, _micro_batch_tokens(batch)):
            plan = plan_batch(replace(batch, micro_batch_tokens=tokens), candidate)
            stages = plan_trainer(sizes, candidate, plan, replace(settings, recompute=recompute))
            if not fits(candidate, recompute, tokens, stages):
                continue
            peak = max(stage.peak for stage in stages)
            seconds = step_seconds(
                sizes, candidate, plan, cluster, recompute=recompute, value_bytes=settings.value_bytes
            )
            key = (candidate, recompute)
            if key not in best or seconds < best[key].seconds:
                best[key] = Suggestion(candidate, recompute, tokens, plan.micro_batches, peak, seconds)
    fastest = min((one.seconds for one in best.values()), default=1.0)
    return sorted(
        best.values(),
        key=lambda one: (round(one.seconds / fastest, 2), one.layout.context, one.layout.pipeline, one.peak),
    )


def _layouts(sizes: ModelSizes, asked: Layout, batch: Batch, cluster: Cluster) -> Iterator[Layout]:
    """Tensor-parallel groups stay in a node; every data-parallel rank has a sequence."""
    per_update = batch.prompts * batch.samples_per_prompt // batch.updates
    cut = [sizes.num_attention_heads, sizes.num_key_value_heads]
    if not sizes.num_experts:
        cut.append(sizes.ffn_hidden_size)
    for tensor in _divisors(cluster.gpus_per_node):
        if any(size % tensor for size in cut):
            continue
        for pipeline, context in product(_divisors(sizes.num_layers), _CONTEXTS):
            data, rest = divmod(asked.world_size, tensor * pipeline * context)
            stage_ranks = tensor * context * data
            if rest or not 0 < data <= per_update or stage_ranks % asked.expert:
                continue
            runs = asked.virtual_pipeline if pipeline > 1 else 1
            if sizes.num_layers % (pipeline * runs):
                runs = 1
            yield Layout(tensor, tensor > 1, pipeline, runs, context, asked.expert, data)


def _micro_batch_tokens(batch: Batch) -> Sequence[int]:
    longest = batch.max_prompt_length + batch.max_response_length
    return sorted({batch.micro_batch_tokens, longest, 2 * longest, 4 * longest})


def step_seconds(
    sizes: ModelSizes,
    layout: Layout,
    plan: BatchPlan,
    cluster: Cluster,
    *,
    recompute: Recompute,
    value_bytes: int,
) -> float:
    """Estimate the time of an optimizer step on the longest sequences, to be compared with that of other layouts.

    Args:
        sizes: sizes of the model.
        layout: layout of the trainer.
        plan: plan of the batch under that layout.
        cluster: the machines; only the number of GPUs of a node is used.
        recompute: part of a layer that is computed twice.
        value_bytes: bytes of an activation.

    Returns:
        Seconds.
    """
    passes = 4 if recompute == "full" else 3  # one forward, and a backward that costs two
    tokens = plan.sequences_per_rank * plan.longest
    # 2 flops for each weight and token, and the scores and weighted values, half of which causality leaves.
    flops = 2 * _active_parameters(sizes) + 2 * sizes.num_layers * sizes.query_size * plan.longest
    compute = passes * tokens * flops / (layout.tensor * layout.context * layout.pipeline) / _FLOPS

    per_channel = sizes.num_layers / layout.pipeline * tokens / layout.context * value_bytes
    # Each layer has two all-gathers and two reduce-scatters in each direction, or all-reduces of as many bytes.
    tensor = per_channel * passes * 4 * sizes.hidden_size * (1 - 1 / layout.tensor) / _LINK_BYTES_PER_S
    crosses = layout.tensor * layout.context > cluster.gpus_per_node
    link = _NETWORK_BYTES_PER_S if crosses else _LINK_BYTES_PER_S
    context = per_channel * passes * 2 * sizes.key_size / layout.tensor * (layout.context - 1) / link
    gradients = (4 + value_bytes) * total_parameters(sizes) / (layout.tensor * layout.pipeline)
    shards = layout.optimizer_shards
    data = gradients * (1 - 1 / shards) / _NETWORK_BYTES_PER_S
    bubble = (layout.pipeline - 1) / (layout.virtual_pipeline * plan.micro_batches)
    return (compute + tensor + context) * (1 + bubble) + data


def _active_parameters(sizes: ModelSizes) -> int:
    """Weights with which one token is multiplied; the embedding is only looked up."""
    experts = sizes.num_layers * 3 * sizes.hidden_size * sizes.expert_hidden_size
    idle = experts * (sizes.num_experts - sizes.experts_per_token)
    embedding = 0 if sizes.tie_word_embeddings else sizes.vocab_size * sizes.hidden_size
    return total_parameters(sizes) - idle - embedding


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
