"""A tiny random model of every family, and its log-probs and entropy by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.policies import TEMPERATURE, make_rollout_batch

# Four layers, so that two pipeline ranks can hold two virtual stages each.
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
# Stretched from 4 positions on, so that it affects even the shortest sequences of a test.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 4}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
EXPERTS = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# By name: the model_type, and the differences from SIZES.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 8}),
    "llama2_linear": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 8}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_yarn": ("qwen2", {"rope_parameters": YARN_ROPE}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3_yarn": ("qwen3", {"head_dim": 8, "rope_parameters": YARN_ROPE, "tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe_plain": ("qwen3_moe", EXPERTS | {"norm_topk_prob": False}),
    "mistral": ("mistral", {"sliding_window": 24, "head_dim": 4}),
}


def make_model(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write the folder of a random model; equal arguments write equal weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, differences = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SIZES | differences | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return folder


def transformers_tokens(folder: Path) -> dict[int, tuple[float, float, float]]:
    """Log-prob and entropy of each token of a rollout batch, and its entropy at temperature 1, by transformers."""
    from transformers import AutoModelForCausalLM

    # The other implementations of experts do not support float64.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    batch, result = make_rollout_batch(seed=1), {}
    for i in range(len(batch.rewards)):
        prompt, response = int(batch.prompt_lengths[i]), int(batch.response_lengths[i])
        ids = batch.tokens[i, : prompt + response]
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        for j in range(response):
            scaled, plain = (torch.log_softmax(logits[prompt + j - 1] / t, -1) for t in (TEMPERATURE, 1.0))
            entropies = [float(-(lp.exp() * lp).sum()) for lp in (scaled, plain)]
            result[i * batch.max_response_length + j] = (float(scaled[ids[prompt + j]]), *entropies)
    return result
