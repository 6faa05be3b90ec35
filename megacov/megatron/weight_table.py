"""The weight table of a whole model: which Hugging Face tensors each Megatron parameter holds, and on which rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megacov.megatron.families.family import WeightRule
from megacov.megatron.families.layout import REPLICATED, vocab_layout
from megacov.megatron.families.registry import FAMILIES
from megacov.megatron.families.shape import ModelShape

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


def weight_rules(shape: ModelShape, *, padded_vocab_size: int) -> list[WeightRule]:
    """Rules for every parameter of the whole model, layer by layer.

    Args:
        shape: sizes of the model.
        padded_vocab_size: vocabulary rows over all tensor-parallel ranks.

    Returns:
        One rule per parameter.
    """
    vocab, rows = vocab_layout(padded_vocab_size), (shape.vocab_size, shape.hidden_size)
    rules = [WeightRule((EMBEDDING,), (("model.embed_tokens.weight", rows),), vocab)]
    for layer in range(shape.num_layers):
        rules += _layer_rules(shape, layer)
    norm = (("model.norm.weight", (shape.hidden_size,)),)
    rules.append(WeightRule(("decoder.final_layernorm.weight",), norm, REPLICATED, on_last_stage=True))
    if not shape.tie_word_embeddings:
        rules.append(WeightRule((OUTPUT,), (("lm_head.weight", rows),), vocab, on_last_stage=True))
    return rules


def _layer_rules(shape: ModelShape, layer: int) -> Iterator[WeightRule]:
    for block in FAMILIES[shape.family].layer:
        for rule in block(shape):
            names = tuple(f"decoder.layers.{layer}.{name}" for name in rule.names)
            sources = tuple((f"model.layers.{layer}.{name}", size) for name, size in rule.sources)
            yield replace(rule, names=names, sources=sources, layer=layer)


def owner_stage(rule: WeightRule, shape: ModelShape, *, pipeline: int, virtual_pipeline: int) -> int:
    """The rank in the pipeline-parallel group that holds the parameter of a rule."""
    if rule.layer is None:
        return pipeline - 1 if rule.on_last_stage else 0
    return rule.layer // (shape.num_layers // (pipeline * virtual_pipeline)) % pipeline


def owner_of_expert(rule: WeightRule, shape: ModelShape, *, expert_parallel: int) -> int | None:
    """The rank in the expert-parallel group that holds the parameter of a rule; None if all of its ranks hold it."""
    if rule.expert is None or shape.experts is None:
        return None
    return rule.expert // (shape.experts.num_experts // expert_parallel)
