"""A random Qwen2 of a few thousand parameters with a tokenizer of single characters, as a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2 import Qwen2Tokenizer  # AutoTokenizer turns any tokenizer of a Qwen2 model into this

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+=?abcdefghijklmnopqrstuvwxyz"
PAD_ID, EOS_ID = 0, 1


def make_tiny_model(
    folder: Path, *, seed: int = 0, vocab_size: int = 32, context_length: int = 64, tie_word_embeddings: bool = False
) -> Path:
    """Write the folder; equal arguments write equal weights.

    Each character in `CHARACTERS` is a token; further tokens are words that no text is encoded into.
    """
    tokens = [*SPECIAL_TOKENS, *CHARACTERS, *(f"<{index}>" for index in range(vocab_size))][:vocab_size]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context_length,
            tie_word_embeddings=tie_word_embeddings,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)  # otherwise all tokens would be about equally likely
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
