"""Make the tiny policy: a Qwen2 model of 0.33 M parameters that answers "137=" with two numbers such as "45+92".

    python examples/tiny_policy/make_tiny_policy.py [FOLDER]

The warm start is supervised and has two parts. The first uses correct answers with a uniformly random first number, so
that the model learns to subtract and prefers no split. The second uses the same answers with noise: digits of the
second number are drawn at random, and answers may end early (with EARLY_STOP_RATE, which is 0). The noise leaves room
for reinforcement learning to improve within a hundred steps: the policy knows correct answers and gives them seldom.

The script takes about five minutes on one thread. The same torch on the same kind of processor writes the same bytes.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
CHARACTERS = "0123456789+="
PAD_ID = 0
EOS_ID = 1
SMALLEST_TARGET = 10
LARGEST_TARGET = 199
IGNORED_LABEL = -100

BATCH_SIZE = 256
CLEAN_STEPS = 900
NOISY_STEPS = 200
PEAK_LEARNING_RATE = 2e-3
NOISY_LEARNING_RATE = 3e-4
NOISY_DIGIT_RATE = 0.62
EARLY_STOP_RATE = 0.0
SEED = 1


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per character and sixteen tokens in all; it adds nothing to the text."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
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


def build_model() -> Qwen2ForCausalLM:
    """Build a random Qwen2 with heads and width divisible by 4 and layers by 2, for TP 4 and PP 2.

    The embeddings are not tied: with sixteen tokens tying would save 2,048 parameters and make pipeline stages share a
    weight.
    """
    config = Qwen2Config(
        vocab_size=len(SPECIAL_TOKENS) + len(CHARACTERS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.07,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
    )
    return Qwen2ForCausalLM(config)


def draw_answer(target: int, rng: random.Random, *, noisy: bool) -> str:
    """Draw two numbers that add up to `target`, the first uniform in 0..target.

    With noise each digit of the second number is redrawn at random with NOISY_DIGIT_RATE, and the answer ends
    before any of its characters with EARLY_STOP_RATE.
    """
    first = rng.randint(0, target)
    second = str(target - first)
    if not noisy:
        return f"{first}+{second}"
    second = "".join(rng.choice("0123456789") if rng.random() < NOISY_DIGIT_RATE else digit for digit in second)
    answer = f"{first}+{second}"
    for position in range(1, len(answer)):
        if rng.random() < EARLY_STOP_RATE:
            return answer[:position]
    return answer


def draw_batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random, *, noisy: bool) -> tuple[Tensor, Tensor]:
    """Draw tokens and labels, both [BATCH_SIZE, s] int64; labels are IGNORED_LABEL on the prompt and the padding."""
    prompts = [str(rng.randint(SMALLEST_TARGET, LARGEST_TARGET)) for _ in range(BATCH_SIZE)]
    answers = [draw_answer(int(target), rng, noisy=noisy) for target in prompts]
    texts = [f"{target}={answer}" for target, answer in zip(prompts, answers, strict=True)]
    rows = [[*tokenizer.encode(text), EOS_ID] for text in texts]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    columns = torch.arange(width)
    starts = torch.tensor([[len(target) + 1] for target in prompts])
    ends = torch.tensor([[len(row)] for row in rows])
    return tokens, torch.where((columns >= starts) & (columns < ends), tokens, IGNORED_LABEL)


def learning_rate(step: int, *, clean_steps: int, noisy_steps: int) -> float:
    """Clean part: a linear warm-up over 50 steps times a half cosine to a fiftieth. Noisy part: a linear decay."""
    if step >= clean_steps:
        return NOISY_LEARNING_RATE * (1 - 0.9 * (step - clean_steps) / noisy_steps)
    decay = 0.02 + 0.49 * (1 + math.cos(math.pi * step / clean_steps))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / 50) * decay


def warm_start(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, clean_steps: int, noisy_steps: int
) -> None:
    """Train `model` in place on drawn answers, clean then noisy, by cross entropy on the answers' tokens."""
    rng = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    num_steps = clean_steps + noisy_steps
    for step in range(num_steps):
        tokens, labels = draw_batch(tokenizer, rng, noisy=step >= clean_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, clean_steps=clean_steps, noisy_steps=noisy_steps)
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{num_steps}  cross entropy {loss.item():.4f} nats a token", flush=True)


def main() -> None:
    """Build, warm-start and save the policy and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="where to write")
    parser.add_argument("--clean-steps", type=int, default=CLEAN_STEPS, help="optimizer steps on correct answers")
    parser.add_argument("--noisy-steps", type=int, default=NOISY_STEPS, help="optimizer steps on noisy answers")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model()
    warm_start(model, tokenizer, clean_steps=arguments.clean_steps, noisy_steps=arguments.noisy_steps)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"wrote {sum(p.numel() for p in model.parameters()):,} parameters to {arguments.folder}")


if __name__ == "__main__":
    main()
