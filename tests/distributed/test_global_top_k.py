"""global_top_k over ranks equals a sort of all tokens in one place, with a known number of collectives."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from megacov.selection import global_top_k
from tests.support.run_ranks import run_cases
from tests.support.top_k_cases import DTYPES, TopKCase, generate_cases

pytestmark = pytest.mark.dist

CASES = [
    # Cases that generation might miss: no tokens at all, all on one rank, k = 0, and k = N and k > N with only ties.
    TopKCase(torch.float32, (), 0),
    TopKCase(torch.float32, (), 3),
    *(TopKCase(torch.float32, tuple((0.0, True, n, 1) for n in range(9)), k) for k in (0, 1, 4, 9, 12)),
    *(TopKCase(torch.float32, tuple((-0.0 if n % 2 else 0.0, True, 99 - n, n) for n in range(12)), k) for k in (1, 6)),
    TopKCase(torch.float32, tuple((float("inf"), n % 3 > 0, n, n) for n in range(12)), 5),
    *generate_cases(80),
]


def _select_ids(case: TopKCase) -> list[int]:
    scores, kept_mask, token_ids = case.tensors(dist.get_rank(), dist.get_world_size())
    return token_ids[global_top_k(scores, kept_mask, token_ids, k=case.k, group=dist.group.WORLD)].tolist()


@pytest.mark.parametrize("world_size", [2, 4])
def test_equals_a_gathered_sort(world_size):
    results = run_cases(_select_ids, [(case,) for case in CASES], world_size=world_size)
    for case, by_rank in zip(CASES, results, strict=True):
        selected = [token_id for token_ids in by_rank for token_id in token_ids]
        assert len(selected) == len(set(selected)), case
        assert set(selected) == case.expected_ids(), case


def _count_collectives(case: TopKCase) -> int:
    comm = CommDebugMode()
    with comm:
        _select_ids(case)
    return comm.get_total_counts()


def test_the_number_of_collectives_depends_on_the_dtype_and_on_ties():
    cases = [
        TopKCase(dtype, tuple((score, True, n, n) for n, score in enumerate(scores)), k)
        for dtype in DTYPES
        for scores in ((), (1,) * 8, (3, 1, 2))
        for k in (0, 2)
    ]
    for case, by_rank in zip(
        cases, run_cases(_count_collectives, [(case,) for case in cases], world_size=2), strict=True
    ):
        num_of_scores = 6 if case.dtype.itemsize == 8 else 3
        scores = {token[0] for token in case.tokens}
        num_rounds = num_of_scores + (6 if case.k == 2 and len(scores) == 1 else 0)
        assert by_rank == [num_rounds, num_rounds], case


def test_the_generated_cases_cover_what_matters():
    """Guard the generator: without ties or empty ranks the test above would be weaker."""
    sizes = [[len(case.tensors(rank, 4)[0]) for rank in range(4)] for case in CASES]
    assert sum(0 in size and sum(size) > 0 for size in sizes) >= 10, "a rank without tokens"
    assert sum(case.k == 0 for case in CASES) >= 5
    assert sum(case.k >= sum(size) > 0 for case, size in zip(CASES, sizes, strict=True)) >= 5
    tied_at_the_line = 0
    for case in CASES:
        scores, kept_mask, token_ids = case.tensors()
        chosen = torch.isin(token_ids, torch.tensor(sorted(case.expected_ids()), dtype=torch.int64))
        left_out = set(scores[kept_mask & ~chosen].tolist())
        tied_at_the_line += bool(left_out & set(scores[chosen].tolist()))
    assert tied_at_the_line >= 10
