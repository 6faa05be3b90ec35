"""Random generators restored from a file continue as they would have without it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from megacov.errors import CheckpointError
from megacov.megatron import cpu
from megacov.megatron.random_state import random_states, restore_random_states, write_random_states


def _draw() -> list[float]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork("test-state"):
        forked = torch.rand(3).tolist()
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.normal()),
        *forked,
        *torch.rand(3).tolist(),
    ]


def test_every_generator_goes_on(tmp_path: Path) -> None:
    cpu.install()
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    tracker = get_cuda_rng_tracker()
    tracker.reset()
    tracker.add("test-state", 5)
    _draw()
    write_random_states(random_states(), tmp_path / "states.safetensors")
    expected, later = _draw(), _draw()
    assert not set(expected) & set(later)
    restore_random_states(tmp_path / "states.safetensors")
    assert _draw() == expected
    tracker.reset()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "states.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore_random_states(tmp_path / "states.safetensors")
