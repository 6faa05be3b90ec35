"""Bytes that a forward pass keeps for its backward pass, in the manner of Korthikanti et al. (arXiv 2205.05198).

Their count of 34 s b h + 5 a s^2 b bytes for a GPT layer does not hold here: attention writes no scores, heads are
grouped, the feed-forward part is gated, norms are RMSNorm and there is no dropout. So tensors are listed one by one, as
autograd keeps them. Sizes are of one position on one rank: h hidden, q channels of its query heads, k channels of its
key heads, d channels of one head, n query heads, f feed-forward columns.

=============================  =================  =======================
kept for the backward pass     fused              plain
=============================  =================  =======================
each of two norms              2 h (in, out)      3 h (in, normalised, out)
projection of q, k, v          q + 2 k            q + 2 k
norms of queries and keys      q                  2 q + k
rotated queries and keys       q + k + 4 d        q + k + 4 d
attention                      q, n float32       q, n float32
gate and up, their product     2 f + f            2 f + 3 f
=============================  =================  =======================

"Fused" is Transformer Engine on a GPU, where the product of gate and up keeps only its inputs. "Plain" is torch's own
layers; a test counts what autograd really keeps for them on a CPU, padded and in float32, and finds this table exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megacov.plan.layout import Layout
from megacov.plan.model_sizes import ModelSizes

Recompute = Literal["none", "selective", "full"]
_FLOAT32 = 4


@dataclass(frozen=True)
class ActivationSettings:
    """How a layer runs.

    value_bytes: bytes of an activation, 2 in bfloat16 and 4 in float32.
    recompute: part of the layer that is computed again in the backward pass.
    fused: whether layers are Transformer Engine's; otherwise they are torch's.
    """

    value_bytes: int
    recompute: Recompute
    fused: bool = True


def kept_by_layer(sizes: ModelSizes, layout: Layout, settings: ActivationSettings) -> float:
    """Bytes that one layer keeps for one position of a micro-batch, on one rank."""
    h = sizes.hidden_size / layout.sequence_share
    if settings.recompute == "full":
        return settings.value_bytes * h
    norms = (2 * 2 if settings.fused else 2 * 3) * h
    values = norms + _attention(sizes, layout, settings) + _feed_forward(sizes, layout, settings)
    return settings.value_bytes * values + _FLOAT32 * _statistics(sizes, layout, settings)


def kept_after_layers(sizes: ModelSizes, layout: Layout, settings: ActivationSettings) -> float:
    """Bytes that the last norm keeps for one position, including its output for the output layer."""
    return (2 if settings.fused else 3) * settings.value_bytes * sizes.hidden_size / layout.sequence_share


def _attention(sizes: ModelSizes, layout: Layout, settings: ActivationSettings) -> float:
    q, k = sizes.query_size / layout.tensor, sizes.key_size / layout.tensor
    # Values are a view of the projection, which is kept for them. Rotated queries and keys are new tensors, and the
    # cosines and sines of each are kept as well.
    kept = (q + 2 * k) + (q + k + 4 * sizes.head_dim) + q
    if sizes.has_qk_norm:
        kept += q if settings.fused else 2 * q + k
    if not settings.fused and layout.context > 1:
        # Torch's attention works on the keys and values of all context-parallel ranks at once; Transformer Engine's
        # passes them round a ring.
        kept += 2 * k * layout.context
    return kept


def _feed_forward(sizes: ModelSizes, layout: Layout, settings: ActivationSettings) -> float:
    factor = 3 if settings.fused else 5
    if not sizes.num_experts:
        return factor * sizes.ffn_hidden_size / layout.tensor
    # A position is copied to several experts, which are whole and evenly loaded, and their outputs are weighted.
    return sizes.experts_per_token * (2 * sizes.hidden_size + factor * sizes.expert_hidden_size) / layout.sequence_share


def _statistics(sizes: ModelSizes, layout: Layout, settings: ActivationSettings) -> float:
    """Count of float32 numbers: one for each row of a norm, and one for each row of attention unless recomputed."""
    heads, key_heads = sizes.num_attention_heads / layout.tensor, sizes.num_key_value_heads / layout.tensor
    count = 2 / layout.sequence_share
    count += heads if settings.recompute == "none" else 0
    count += heads + key_heads if sizes.has_qk_norm else 0
    count += 2 * sizes.num_experts / layout.sequence_share  # the router's logits and probabilities
    return count


def layers_in_flight(layout: Layout, *, num_layers: int, stage: int, micro_batches: int) -> float:
    """Layers whose activations a stage holds at once, counted once for each micro-batch.

    In the 1F1B schedule, the forward passes of a stage are ahead of its backward passes by the number of stages behind
    it. The interleaved schedule (Narayanan et al., arXiv 2104.04473, as in `megatron.core.pipeline_parallel.schedules`)
    warms up with twice as many runs of layers, and with all but the last of its virtual stages.

    Args:
        layout: layout of the trainer.
        num_layers: number of layers of the whole model.
        stage: pipeline stage, from 0.
        micro_batches: number of micro-batches of an optimizer step.

    Returns:
        Layers times micro-batches.
    """
    stages, runs = layout.pipeline, layout.virtual_pipeline
    layers = num_layers / (stages * runs)
    if runs == 1:
        return layers * min(stages - stage, micro_batches)
    return layers * min((stages - stage - 1) * 2 + (runs - 1) * stages + 1, runs * micro_batches)
