"""Builds a Megatron GPTModel from the sizes of a Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import nn
from torch.distributed import ProcessGroup

from megacov.errors import ConfigError
from megacov.megatron.attention import SdpaCoreAttention
from megacov.megatron.compat import has_transformer_engine
from megacov.megatron.families.shape import Experts, ModelShape
from megacov.megatron.gradients import note_own_shards
from megacov.megatron.layers import RMSNorm
from megacov.parallel.collectives import all_gather
from megacov.parallel.groups import ParallelGroups

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelSettings:
    """How the model runs.

    dtype: "float32" or "bfloat16", for parameters and activations.
    vocab_divisible_by: divisor of the rows of a vocabulary shard.
    transformer_engine: "auto", "on" or "off".
    virtual_pipeline: virtual stages (runs of layers) on each pipeline rank.
    sequence_parallel: whether tensor-parallel ranks split the positions between tensor-parallel layers.
    recompute: activations to compute again in the backward pass: "none", "selective" (attention) or "full" (layers).
    deterministic: whether equal inputs must give equal bits.
    fused_output: whether forward-only passes go from hidden states to log-probs without logits in memory.
    """

    dtype: str
    vocab_divisible_by: int
    transformer_engine: str = "auto"
    virtual_pipeline: int = 1
    sequence_parallel: bool = False
    recompute: str = "none"
    deterministic: bool = False
    fused_output: bool = False


def padded_vocab_size(vocab_size: int, *, divisible_by: int, tp_size: int) -> int:
    """Smallest multiple of divisible_by * tp_size that holds the vocabulary, so that all shards are equally large."""
    multiple = divisible_by * tp_size
    return -(-vocab_size // multiple) * multiple


def _sum_gradients(model: list[DistributedDataParallel], num_tokens: torch.Tensor | None, **kwargs: Any) -> None:
    """Finalize gradients as plain sums: token weights already include the global denominator."""
    note_own_shards(model)
    finalize_model_grads(model, None, **kwargs)


def _softmax_scale(shape: ModelShape) -> float | None:
    """None for Megatron's default, 1/sqrt(d). A stretched RoPE scales both queries and keys by its attention factor.
    Megatron's rotary embedding cannot do that, so their product is scaled here."""
    if shape.rope_scaling is None or shape.rope_scaling.attention_factor == 1.0:
        return None
    factor: float = shape.rope_scaling.attention_factor**2 / shape.head_dim**0.5
    return factor


def _of_the_model(shape: ModelShape) -> dict[str, Any]:
    """Megatron's configuration fields that describe the model and not its layout."""
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_query_groups": shape.num_key_value_heads,
        "kv_channels": shape.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "qk_layernorm": shape.qk_norm,
        "softmax_scale": _softmax_scale(shape),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        **({} if shape.experts is None else _of_the_experts(shape.experts)),
    }


def _of_the_experts(experts: Experts) -> dict[str, Any]:
    """A router as in transformers: softmax in float32, no auxiliary loss, no dropped token."""
    return {
        "num_moe_experts": experts.num_experts,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        "moe_router_topk": experts.num_per_token,
        # A softmax over the chosen experts' logits makes their weights sum to 1; one over all experts does not.
        "moe_router_pre_softmax": not experts.normalizes_weights,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
    }


def transformer_config(shape: ModelShape, settings: ModelSettings, groups: ParallelGroups) -> TransformerConfig:
    """Megatron's configuration of this model.

    `calculate_per_token_loss` makes Megatron sum the gradients of micro-batches and data-parallel ranks instead of
    averaging them. `variable_seq_lengths` lets micro-batches in a pipeline differ in length; Megatron allows it only
    with the "alltoall" dispatcher, even for a dense model. `perform_initialization` stays on although the weights are
    loaded later: without it Megatron does not mark sharded weights, and its gradient norm counts one shard for all.
    Virtual stages send and receive unbatched: with two pipeline ranks the next and the previous rank are the same, and
    batched messages reach the wrong stage.
    """
    on_gpu, dtype = torch.cuda.is_available(), DTYPES[settings.dtype]
    has_virtual_stages, whole_layers = settings.virtual_pipeline > 1, settings.recompute == "full"
    return TransformerConfig(
        **_of_the_model(shape),
        tensor_model_parallel_size=groups.tp_size,
        sequence_parallel=settings.sequence_parallel,
        context_parallel_size=groups.cp_size,
        expert_model_parallel_size=groups.ep_size,
        expert_tensor_parallel_size=1,
        pipeline_model_parallel_size=groups.pp_size,
        virtual_pipeline_model_parallel_size=settings.virtual_pipeline if has_virtual_stages else None,
        batch_p2p_comm=not has_virtual_stages,
        overlap_p2p_comm=has_virtual_stages,
        recompute_granularity=None if settings.recompute == "none" else settings.recompute,
        recompute_method="uniform" if whole_layers else None,
        recompute_num_layers=1 if whole_layers else None,
        deterministic_mode=settings.deterministic,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=not on_gpu,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        calculate_per_token_loss=True,
        finalize_model_grads_func=_sum_gradients,
    )


def layer_spec(
    config: TransformerConfig, *, transformer_engine: bool, virtual_stage: int | None
) -> TransformerBlockSubmodules:
    """Specify the modules of the layers of one chunk.

    Args:
        config: Megatron's configuration.
        transformer_engine: whether to use Transformer Engine's modules instead of the ones in this folder.
        virtual_stage: index of the chunk; None without virtual stages.

    Returns:
        The block specification.
    """
    modules: dict[str, Any] = {"num_experts": config.num_moe_experts, "qk_layernorm": config.qk_layernorm}
    if transformer_engine:
        from megatron.core.extensions.transformer_engine import TENorm

        modules["moe_grouped_gemm"] = config.num_moe_experts is not None
        spec, norm = get_gpt_layer_with_transformer_engine_spec(**modules), TENorm
    else:
        spec, norm = get_gpt_layer_local_spec(normalization="RMSNorm", **modules), RMSNorm
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
        attention = spec.submodules.self_attention.submodules
        attention.core_attention = SdpaCoreAttention
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=norm)


def use_transformer_engine(choice: str, *, group: ProcessGroup | None) -> bool:
    """Decide between Transformer Engine's modules and torch's; all ranks decide the same.

    Collectives: group: all-gather of one flag.

    Args:
        choice: "auto" (used if every rank has it and CUDA works), "on" or "off".
        group: all ranks, over gloo.

    Returns:
        True for Transformer Engine.

    Raises:
        ConfigError: a rank lacks it although it is on, or although other ranks have it; raised on all ranks.
    """
    usable = has_transformer_engine() and (choice == "on" or torch.cuda.is_available())
    has_it: list[bool] = all_gather(torch.tensor(usable), group=group).tolist()
    if choice == "off" or (choice == "auto" and not any(has_it)):
        return False
    if not all(has_it):
        raise ConfigError(
            f"model.transformer_engine is {choice}, but transformer_engine cannot be imported on {has_it.count(False)} "
            f"of {len(has_it)} ranks (rank {has_it.index(False)} is the first): install megacov[gpu] there, or set it "
            "to off."
        )
    return True


def build_model(
    shape: ModelShape, settings: ModelSettings, groups: ParallelGroups, *, transformer_engine: bool
) -> list[nn.Module]:
    """Build this rank's shard of the model, before the policy's weights are loaded.

    Call `check_split` first to learn whether the model can be split this way.

    Args:
        shape: sizes of the model.
        settings: dtype, padding and parallel features.
        groups: process groups of this rank.
        transformer_engine: whether to use Transformer Engine's modules.

    Returns:
        The virtual stages of this rank, one or more.
    """
    config = transformer_config(shape, settings, groups)
    stages = range(settings.virtual_pipeline) if settings.virtual_pipeline > 1 else (None,)
    vocab_size = padded_vocab_size(shape.vocab_size, divisible_by=settings.vocab_divisible_by, tp_size=groups.tp_size)
    chunks: list[nn.Module] = []
    for stage in stages:
        # No Float16Module around it: that returns float32 logits, a copy of the largest tensor at twice its size. In
        # bfloat16, parameters are created as such, and the op that reads the logits computes in float32 by itself.
        model: Any = GPTModel(
            config,
            layer_spec(config, transformer_engine=transformer_engine, virtual_stage=stage),
            vocab_size=vocab_size,
            max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            position_embedding_type="rope",
            rotary_base=shape.rope_theta,
            share_embeddings_and_output_weights=shape.tie_word_embeddings,
            vp_stage=stage,
        )
        if shape.rope_scaling is not None:
            frequencies = model.rotary_pos_emb.inv_freq
            model.rotary_pos_emb.inv_freq = frequencies.new_tensor(shape.rope_scaling.inverse_frequencies)
        chunks.append(model.cuda() if torch.cuda.is_available() else model)
    return chunks


def wrap_for_training(chunks: Sequence[nn.Module]) -> list[DistributedDataParallel]:
    """Wrap each stage in Megatron's DistributedDataParallel, with gradient buffers for a distributed optimizer."""
    settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    return [DistributedDataParallel(chunk.config, settings, chunk) for chunk in chunks]
