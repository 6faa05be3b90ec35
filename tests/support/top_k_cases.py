"""Generated inputs of global_top_k: all dtypes, ties, both zeros, infinities, NaN, any split over ranks, any k."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import hypothesis.strategies as st
import torch

from tests.support import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)
MAX_RANKS = 4
INTEGERS: list[float] = [0, -1, 2**63 - 1, -(2**63), 2**53 + 1, 2**53]
FLOATS: list[float] = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, -1.0, 1e-40]


@dataclass(frozen=True)
class TopKCase:
    """tokens: (score, is masked, token id, home) of each; home modulo the number of ranks is the rank that holds it."""

    dtype: torch.dtype
    tokens: tuple[tuple[float, bool, int, int], ...]
    k: int

    def tensors(self, rank: int = 0, num_ranks: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores, loss mask and token ids of one rank."""
        mine = [token for token in self.tokens if token[3] % num_ranks == rank]
        return (
            torch.tensor([token[0] for token in mine], dtype=self.dtype),
            torch.tensor([token[1] for token in mine], dtype=torch.bool),
            torch.tensor([token[2] for token in mine], dtype=torch.int64),
        )

    def expected_ids(self) -> set[int]:
        """Expected ids by sorting all tokens, with scores rounded to this dtype."""
        scores, kept_mask, token_ids = self.tensors()
        return reference.top_k_ids(
            list(zip(scores.tolist(), kept_mask.tolist(), token_ids.tolist(), strict=True)), self.k
        )


def make_case(draw: random.Random) -> TopKCase:
    """Two thirds of all cases choose scores from a few values, so that ties are the rule."""
    dtype = draw.choice(DTYPES)
    special: list[float] = INTEGERS if dtype == torch.int64 else FLOATS
    few = [draw.choice(special) if draw.random() < 0.5 else _score(draw, dtype) for _ in range(draw.randint(1, 3))]
    share_of_few = draw.choice([1.0, 0.5, 0.0])
    ids = {
        draw.randint(-(2**63), 2**63 - 1) if draw.random() < 0.5 else draw.randint(0, 100) for _ in range(_size(draw))
    }
    tokens = tuple(
        (
            draw.choice(few) if draw.random() < share_of_few else _score(draw, dtype),
            draw.random() < 0.8,
            token_id,
            draw.randrange(MAX_RANKS),
        )
        for token_id in draw.sample(sorted(ids), len(ids))
    )
    return TopKCase(dtype, tokens, draw.randint(0, len(tokens) + 2))


def _size(draw: random.Random) -> int:
    """Many small cases, in which ranks have no tokens and k is 0 or all of them."""
    return draw.randint(0, 4) if draw.random() < 0.5 else draw.randint(5, 40)


def _score(draw: random.Random, dtype: torch.dtype) -> float:
    """Any bit pattern, with subnormal numbers, infinities and NaN. The tensor rounds the scores for bfloat16."""
    if dtype == torch.int64:
        return draw.randint(-(2**63), 2**63 - 1)
    size, code = (8, "<d") if dtype == torch.float64 else (4, "<f")
    return float(struct.unpack(code, draw.randbytes(size))[0])


def top_k_cases() -> st.SearchStrategy[TopKCase]:
    """Such cases as a hypothesis strategy, which shrinks a failing case."""
    return st.randoms(note_method_calls=False, use_true_random=False).map(make_case)


def generate_cases(num_cases: int) -> list[TopKCase]:
    """A list of cases, the same on every run, which one world of ranks can work through."""
    draw = random.Random(0)
    return [make_case(draw) for _ in range(num_cases)]
