"""Which collective backend a job chooses, and its error when ranks differ."""

from __future__ import annotations

import pytest

from megacov.errors import ConfigError
from megacov.megatron.process_groups import select_backend


@pytest.mark.parametrize(
    ("backend", "has_cuda", "expected"),
    [
        ("auto", [False, False], "gloo"),
        ("auto", [True, True], "nccl"),
        ("nccl", [True], "nccl"),
        ("gloo", [True, False], "gloo"),
    ],
)
def test_the_backend_that_all_ranks_can_run(backend: str, has_cuda: list[bool], expected: str) -> None:
    assert select_backend(backend, has_cuda=has_cuda) == expected


@pytest.mark.parametrize(("backend", "has_cuda"), [("auto", [True, False]), ("nccl", [True, False]), ("nccl", [False])])
def test_a_rank_without_cuda_is_named(backend: str, has_cuda: list[bool]) -> None:
    with pytest.raises(ConfigError, match=rf"parallel.backend is {backend}.*rank {has_cuda.index(False)} is the first"):
        select_backend(backend, has_cuda=has_cuda)
