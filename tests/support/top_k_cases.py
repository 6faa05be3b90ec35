"""Generated inputs of global_top_k: every dtype, ties, both zeros, infinities, NaN, any split over ranks, any k."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, settings

from tests.support import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)
MAX_RANKS = 4
_INT64 = st.integers(-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class TopKCase:
    """tokens: (score, is masked, token id, home) each; home modulo the number of ranks is the rank that holds it."""

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
        """What a sort of all tokens gives, of the scores as they are in this dtype."""
        scores, loss_mask, token_ids = self.tensors()
        return reference.top_k_ids(
            list(zip(scores.tolist(), loss_mask.tolist(), token_ids.tolist(), strict=True)), self.k
        )


@st.composite
def top_k_cases(draw: st.DrawFn) -> TopKCase:
    """Half of all cases choose their scores from a few values, so that ties are the rule."""
    dtype = draw(st.sampled_from(DTYPES))
    if dtype == torch.int64:
        scores: st.SearchStrategy = _INT64
        special: list = [0, -1, 2**63 - 1, -(2**63), 2**53 + 1, 2**53]
    else:
        # Those of bfloat16 are rounded by the tensor, which makes ties out of neighbours.
        scores = st.floats(width=64 if dtype == torch.float64 else 32)
        special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, -1.0, 1e-40]
    few = st.sampled_from(draw(st.lists(st.sampled_from(special) | scores, min_size=1, max_size=3)))
    token_ids = draw(st.lists(_INT64 | st.integers(0, 100), unique=True, max_size=40))
    pool = draw(st.sampled_from([few, few | scores, scores]))
    tokens = tuple(
        (draw(pool), draw(st.integers(0, 4)) > 0, token_id, draw(st.integers(0, MAX_RANKS - 1)))
        for token_id in token_ids
    )
    return TopKCase(dtype, tokens, draw(st.integers(0, len(tokens) + 2)))


def generate_cases(num_cases: int) -> list[TopKCase]:
    """The same cases on every run, as a list, so that one world of ranks can go through all of them."""
    cases: list[TopKCase] = []

    @settings(
        max_examples=num_cases, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(top_k_cases())
    def collect(case: TopKCase) -> None:
        cases.append(case)

    collect()
    return cases
