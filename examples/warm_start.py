"""The part that the scripts of the shipped policies share: a tokenizer of given pieces, and supervised training."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
PAD_ID = 0
EOS_ID = 1
IGNORED_LABEL = -100

Draw = Callable[[random.Random, bool], list[tuple[str, str]]]
"""fn(generator, whether with noise) -> prompts and answers of one batch."""


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates: clean_steps on right answers, then noisy_steps on answers with noise."""

    clean_steps: int
    noisy_steps: int
    peak: float
    noisy: float

    def learning_rate(self, step: int) -> float:
        """Clean part: a linear warm-up over 50 steps times a half cosine to a fiftieth. Noisy part: a linear decay."""
        if step >= self.clean_steps:
            return self.noisy * (1 - 0.9 * (step - self.clean_steps) / self.noisy_steps)
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / self.clean_steps))
        return self.peak * min(1.0, (step + 1) / 50) * decay


def build_tokenizer(pieces: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per piece of text after four special ones; it adds nothing to the text."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    longer = [re.escape(piece) for piece in vocabulary if len(piece) > 1 and piece not in SPECIAL_TOKENS]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*longer, r"[\s\S]"])), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def encode_pairs(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Encode prompts and answers: tokens and labels, both [n, s] int64; labels outside the answers are ignored."""
    rows = [[*tokenizer.encode(prompt + answer), EOS_ID] for prompt, answer in pairs]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    columns = torch.arange(width)
    starts = torch.tensor([[len(tokenizer.encode(prompt))] for prompt, _ in pairs])
    ends = torch.tensor([[len(row)] for row in rows])
    return tokens, torch.where((columns >= starts) & (columns < ends), tokens, IGNORED_LABEL)


def warm_start(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, draw: Draw, schedule: Schedule, *, seed: int
) -> None:
    """Train `model` in place on drawn answers, clean then noisy, by cross entropy on the answers' tokens."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    num_steps = schedule.clean_steps + schedule.noisy_steps
    for step in range(num_steps):
        tokens, labels = encode_pairs(tokenizer, draw(rng, step >= schedule.clean_steps))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{num_steps}  cross entropy {loss.item():.4f} nats a token", flush=True)
