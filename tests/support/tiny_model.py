"""A random Qwen2 of a few thousand parameters with a word-level tokenizer, saved as a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2


def make_tiny_model(
    folder: Path, *, seed: int = 0, vocab_size: int = 32, context_length: int = 64, tie_word_embeddings: bool = False
) -> Path:
    """Write the folder; token i is the word "w<i>", and equal arguments write equal weights."""
    words = {word: index for index, word in enumerate(("<pad>", "<eos>", "<unk>"))}
    words |= {f"w{index}": index for index in range(len(words), vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
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
                parameter.mul_(20.0)  # else every token would be about equally likely
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
