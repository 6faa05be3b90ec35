"""Make the tiny policy: a Qwen2 model of 0.33 M parameters that answers "137=" with two numbers such as "45+92".

    python -m examples.tiny_policy.make_tiny_policy [FOLDER]

The warm start is supervised and has two parts. The first uses correct answers with a uniformly random first number, so
that the model learns to subtract and prefers no split. The second uses the same answers with noise: digits of the
second number are drawn at random, and answers may end early (with EARLY_STOP_RATE, which is 0). The noise leaves room
for reinforcement learning to improve within a hundred steps: the policy knows correct answers and gives them seldom.

The script takes about five minutes on one thread. The same torch on the same kind of processor writes the same bytes.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from examples.warm_start import EOS_ID, PAD_ID, SPECIAL_TOKENS, Schedule, build_tokenizer, warm_start

CHARACTERS = "0123456789+="
SMALLEST_TARGET = 10
LARGEST_TARGET = 199

BATCH_SIZE = 256
CLEAN_STEPS = 900
NOISY_STEPS = 200
PEAK_LEARNING_RATE = 2e-3
NOISY_LEARNING_RATE = 3e-4
NOISY_DIGIT_RATE = 0.62
EARLY_STOP_RATE = 0.0
SEED = 1


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


def draw_batch(rng: random.Random, is_noisy: bool) -> list[tuple[str, str]]:
    """Draw BATCH_SIZE prompts and answers."""
    targets = [rng.randint(SMALLEST_TARGET, LARGEST_TARGET) for _ in range(BATCH_SIZE)]
    return [(f"{target}=", draw_answer(target, rng, noisy=is_noisy)) for target in targets]


def main() -> None:
    """Build, warm-start and save the policy and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="where to write")
    parser.add_argument("--clean-steps", type=int, default=CLEAN_STEPS, help="optimizer steps on correct answers")
    parser.add_argument("--noisy-steps", type=int, default=NOISY_STEPS, help="optimizer steps on noisy answers")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(CHARACTERS)
    model = build_model()
    schedule = Schedule(
        arguments.clean_steps, arguments.noisy_steps, peak=PEAK_LEARNING_RATE, noisy=NOISY_LEARNING_RATE
    )
    warm_start(model, tokenizer, draw_batch, schedule, seed=SEED)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"wrote {sum(p.numel() for p in model.parameters()):,} parameters to {arguments.folder}")


if __name__ == "__main__":
    main()
