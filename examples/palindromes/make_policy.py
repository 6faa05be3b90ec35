"""Make the palindrome policy: a Llama model of 0.50 M parameters that answers "bacabc=" with "abccba" or "bcaacb".

    python -m examples.palindromes.make_policy [FOLDER]

The warm start is supervised and has two parts. The first uses right answers whose first half is in random order, so
that the model prefers no palindrome. The second uses the same answers with noise: letters of the second half are drawn
at random from those of the prompt. The noise leaves room for reinforcement learning to improve within a hundred steps.

The same torch on the same kind of processor writes the same bytes.
"""

from __future__ import annotations

import argparse
import random
import string
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.warm_start import EOS_ID, PAD_ID, SPECIAL_TOKENS, Schedule, build_tokenizer, warm_start

CHARACTERS = string.ascii_lowercase + "="
SHORTEST = 6
LONGEST = 8

BATCH_SIZE = 256
SCHEDULE = Schedule(clean_steps=1000, noisy_steps=200, peak=2e-3, noisy=3e-4)
NOISE_RATE = 0.4
SEED = 1


def build_model() -> LlamaForCausalLM:
    """Build a random Llama with heads and width divisible by 4; the number of tokens is padded to 32."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.07,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
    )
    assert len(SPECIAL_TOKENS) + len(CHARACTERS) <= config.vocab_size
    return LlamaForCausalLM(config)


def draw_pair(rng: random.Random, *, is_noisy: bool) -> tuple[str, str]:
    """Draw letters in random order as a prompt, and a palindrome of them as its answer.

    With noise each letter of the second half is redrawn from the letters of the prompt with NOISE_RATE.
    """
    half, rest = divmod(rng.randint(SHORTEST, LONGEST), 2)
    first = "".join(rng.choices(string.ascii_lowercase, k=half))
    middle = rng.choice(string.ascii_lowercase) if rest else ""
    answer = first + middle + first[::-1]
    letters = "".join(rng.sample(answer, len(answer)))
    if is_noisy:
        kept = len(answer) - half
        second = "".join(rng.choice(letters) if rng.random() < NOISE_RATE else letter for letter in answer[kept:])
        answer = answer[:kept] + second
    return f"{letters}=", answer


def draw_batch(rng: random.Random, is_noisy: bool) -> list[tuple[str, str]]:
    """Draw BATCH_SIZE prompts and answers."""
    return [draw_pair(rng, is_noisy=is_noisy) for _ in range(BATCH_SIZE)]


def main() -> None:
    """Build, warm-start and save the policy and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).with_name("policy")
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="where to write")
    parser.add_argument("--clean-steps", type=int, default=SCHEDULE.clean_steps, help="steps on right answers")
    parser.add_argument("--noisy-steps", type=int, default=SCHEDULE.noisy_steps, help="steps on answers with noise")
    arguments = parser.parse_args()
    schedule = Schedule(arguments.clean_steps, arguments.noisy_steps, peak=SCHEDULE.peak, noisy=SCHEDULE.noisy)

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(CHARACTERS)
    model = build_model()
    warm_start(model, tokenizer, draw_batch, schedule, seed=SEED)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"wrote {sum(p.numel() for p in model.parameters()):,} parameters to {arguments.folder}")


if __name__ == "__main__":
    main()
