"""Layouts of the same GPUs that fit, the fastest first by an estimate of one optimizer step.

The estimate is for ranking layouts and not for predicting times. It adds up arithmetic at a fixed share of the peak,
the messages of tensor, context and expert parallelism over a node's links or the network, the reduction of gradients,
and the bubble of the pipeline (Narayanan et al., arXiv 2104.04473). The constants are those of an H100 node; only their
ratios matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd

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
_MORE_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
WhyNot = Callable[[Layout, Recompute, int, Sequence[StageMemory]], str | None]
"""Why a run may not have this layout and recomputation, tokens of a micro-batch, and memory of each stage."""

# Attention writes no scores, so recomputing it alone saves next to nothing.
_RECOMPUTES: tuple[Recompute, ...] = ("none", "full")


@dataclass(frozen=True)
class Suggestion:
    """A layout with its memory and speed.

    peak: bytes of the fullest GPU.
    seconds: estimate of an optimizer step on the longest sequences, for ranking.
    why_not: why a run may not have it; None for a layout that fits.
    """

    layout: Layout
    recompute: Recompute
    micro_batch_tokens: int
    micro_batches: int
    peak: int
    seconds: float
    why_not: str | None = None


@dataclass(frozen=True)
class Search:
    """The layouts of so many GPUs.

    fitting: layouts that fit, fastest first.
    nearest: the layout that needs least memory, if none fits; None too where the model cannot be split over the GPUs.
    """

    world_size: int
    fitting: list[Suggestion]
    nearest: Suggestion | None = None


def suggest(
    sizes: ModelSizes, layout: Layout, batch: Batch, settings: TrainerSettings, cluster: Cluster, *, why_not: WhyNot
) -> Search:
    """Try every layout of the same number of GPUs.

    Args:
        sizes: sizes of the model.
        layout: layout that the user asked for. Its number of ranks is kept; so are its virtual stages where possible.
        batch: sizes of the batch. Micro-batches of one, two and four longest sequences are tried as well.
        settings: how the trainer runs.
        cluster: the machines.
        why_not: called for each layout into which the model can be split.

    Returns:
        The layouts that fit, fastest first. Within one percent, the layout with the least context and pipeline
        parallelism comes first. For equal layout and recomputation, only the fastest micro-batch is listed.
    """
    best: dict[tuple[Layout, Recompute], Suggestion] = {}
    nearest: Suggestion | None = None
    for candidate in _layouts(sizes, layout, batch, cluster):
        for recompute, tokens in product(_RECOMPUTES, _micro_batch_tokens(batch)):
            plan = plan_batch(replace(batch, micro_batch_tokens=tokens), candidate)
            stages = plan_trainer(sizes, candidate, plan, replace(settings, recompute=recompute))
            seconds = step_seconds(
                sizes, candidate, plan, cluster, recompute=recompute, value_bytes=settings.value_bytes
            )
            why, peak = why_not(candidate, recompute, tokens, stages), max(stage.peak for stage in stages)
            found = Suggestion(candidate, recompute, tokens, plan.micro_batches, peak, seconds, why)
            if why is not None:
                nearest = min((nearest or found, found), key=lambda one: (one.peak, one.seconds))
            elif (candidate, recompute) not in best or seconds < best[candidate, recompute].seconds:
                best[candidate, recompute] = found
    fastest = min((one.seconds for one in best.values()), default=1.0)
    fitting = sorted(
        best.values(),
        key=lambda one: (round(one.seconds / fastest, 2), one.layout.context, one.layout.pipeline, one.peak),
    )
    return Search(layout.world_size, fitting, None if fitting else nearest)


def suggest_more_gpus(
    sizes: ModelSizes, layout: Layout, batch: Batch, settings: TrainerSettings, cluster: Cluster, *, why_not: WhyNot
) -> Search | None:
    """Try more GPUs, on whole nodes, up to 64 nodes.

    Args:
        sizes: sizes of the model.
        layout: layout of fewer GPUs, none of whose layouts fits.
        batch: sizes of the batch.
        settings: how the trainer runs.
        cluster: the machines.
        why_not: called for each layout into which the model can be split.

    Returns:
        The layouts of the least number of GPUs that fit; None if none fits.
    """
    for nodes in _MORE_NODES:
        world_size = nodes * cluster.gpus_per_node
        if world_size > layout.world_size:
            asked = Layout(virtual_pipeline=layout.virtual_pipeline, data=world_size)
            search = suggest(sizes, asked, batch, settings, cluster, why_not=why_not)
            if search.fitting:
                return search
    return None


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
            if rest or not 0 < data <= per_update:
                continue
            runs = asked.virtual_pipeline if pipeline > 1 else 1
            if sizes.num_layers % (pipeline * runs):
                runs = 1
            for expert in _divisors(gcd(sizes.num_experts or 1, tensor * context * data)):
                yield Layout(tensor, tensor > 1, pipeline, runs, context, expert, data)


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
    link = _slowest_link(layout.tensor * layout.context, cluster)
    context = per_channel * passes * 2 * sizes.key_size / layout.tensor * (layout.context - 1) / link
    # Each token goes to its experts and comes back, in each direction.
    sent = per_channel * passes * 2 * sizes.experts_per_token * sizes.hidden_size / layout.sequence_share
    expert = sent * (1 - 1 / layout.expert) / _slowest_link(layout.expert, cluster)
    experts = _expert_parameters(sizes)
    gradients = (total_parameters(sizes) - experts) / layout.tensor * (1 - 1 / layout.optimizer_shards)
    gradients += experts / layout.expert * (1 - 1 / layout.expert_optimizer_shards)
    data = (4 + value_bytes) * gradients / layout.pipeline / _NETWORK_BYTES_PER_S
    bubble = (layout.pipeline - 1) / (layout.virtual_pipeline * plan.micro_batches)
    return (compute + tensor + context + expert) * (1 + bubble) + data


def _slowest_link(group: int, cluster: Cluster) -> float:
    """Bytes a second between the ranks of a group of neighbours."""
    return _NETWORK_BYTES_PER_S if group > cluster.gpus_per_node else _LINK_BYTES_PER_S


def _expert_parameters(sizes: ModelSizes) -> int:
    return sizes.num_layers * sizes.num_experts * 3 * sizes.hidden_size * sizes.expert_hidden_size


def _active_parameters(sizes: ModelSizes) -> int:
    """Weights with which one token is multiplied; the embedding is only looked up."""
    experts = sizes.num_layers * 3 * sizes.hidden_size * sizes.expert_hidden_size
    idle = experts * (sizes.num_experts - sizes.experts_per_token)
    embedding = 0 if sizes.tie_word_embeddings else sizes.vocab_size * sizes.hidden_size
    return total_parameters(sizes) - idle - embedding


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
