"""Make the graph-coloring policy: a Llama model of 0.51 M parameters that answers "01 03 23 =" with colors of vertices.

    python -m examples.graph_coloring.make_policy [FOLDER]

An edge is one token, and so is a vertex with its color: `{"0":2`, `,"1":4`. Only the order of the vertices is fixed.

The warm start is supervised and has two parts. The first uses proper colorings that are drawn at random, so that the
model prefers none. The second uses the same with noise: each color is redrawn at random with NOISE_RATE. The noise
leaves room for reinforcement learning to improve within a hundred steps.

The same torch on the same kind of processor writes the same bytes.
"""

from __future__ import annotations

import argparse
import random
from itertools import combinations
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.warm_start import EOS_ID, PAD_ID, SPECIAL_TOKENS, Schedule, build_tokenizer, warm_start

NUM_VERTICES = 8
NUM_COLORS = 4
EDGE_PROBABILITY = 0.3

BATCH_SIZE = 256
SCHEDULE = Schedule(clean_steps=1000, noisy_steps=200, peak=2e-3, noisy=3e-4)
NOISE_RATE = 0.15
SEED = 1

Edge = tuple[int, int]


def write_edges(edges: list[Edge]) -> str:
    """Write edges as a prompt, such as "01 03 23 ="."""
    return "".join(f"{first}{second} " for first, second in edges) + "="


def write_colors(colors: list[int]) -> str:
    """Write the colors of vertices 0, 1, ... as an answer, such as {"0":2,"1":4}."""
    return "{" + ",".join(f'"{vertex}":{color}' for vertex, color in enumerate(colors)) + "}"


def all_pieces() -> list[str]:
    """List the pieces of text that are tokens."""
    edges = [f"{first}{second} " for first, second in combinations(range(NUM_VERTICES), 2)]
    colored = [
        f'{"," if vertex else "{"}"{vertex}":{color}'
        for vertex in range(NUM_VERTICES)
        for color in range(1, NUM_COLORS + 1)
    ]
    return [*edges, "=", *colored, "}"]


def build_model() -> LlamaForCausalLM:
    """Build a random Llama with heads and width divisible by 4; the number of tokens is padded to 72."""
    config = LlamaConfig(
        vocab_size=72,
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
    assert len(SPECIAL_TOKENS) + len(all_pieces()) <= config.vocab_size
    return LlamaForCausalLM(config)


def draw_coloring(edges: list[Edge], rng: random.Random) -> list[int] | None:
    """Color vertex after vertex with a color that no earlier neighbor has; None if there is none."""
    colors: list[int] = []
    for vertex in range(NUM_VERTICES):
        taken = {colors[first] for first, second in edges if second == vertex}
        free = [color for color in range(1, NUM_COLORS + 1) if color not in taken]
        if not free:
            return None
        colors.append(rng.choice(free))
    return colors


def draw_pair(rng: random.Random, *, is_noisy: bool) -> tuple[str, str]:
    """Draw a graph as a prompt, and a proper coloring as its answer; with noise it may be improper."""
    while True:
        edges = [edge for edge in combinations(range(NUM_VERTICES), 2) if rng.random() < EDGE_PROBABILITY]
        if (colors := draw_coloring(edges, rng)) is not None:
            break
    if is_noisy:
        colors = [rng.randint(1, NUM_COLORS) if rng.random() < NOISE_RATE else color for color in colors]
    return write_edges(edges), write_colors(colors)


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
    tokenizer = build_tokenizer(all_pieces())
    model = build_model()
    warm_start(model, tokenizer, draw_batch, schedule, seed=SEED)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"wrote {sum(p.numel() for p in model.parameters()):,} parameters to {arguments.folder}")


if __name__ == "__main__":
    main()
