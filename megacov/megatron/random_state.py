"""Saves and restores the state of every random generator of this process, in a file without code."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megacov.errors import CheckpointError

_TRACKER = "megatron."


def random_states() -> dict[str, Any]:
    """Current states of the generators of Python, numpy, torch and Megatron.

    Returns:
        "tensors" (name -> [..] uint8 on the CPU) and "numbers" (values that JSON can hold).
    """
    tensors: dict[str, Tensor] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    for name, state in tensor_parallel.get_cuda_rng_tracker().get_states().items():
        tensors[_TRACKER + name] = state.clone() if isinstance(state, Tensor) else state.get_state()
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.array(keys)).view(torch.uint8)
    numbers = {"python": random.getstate(), "numpy": [kind, place, has_gauss, gauss]}
    return {"tensors": tensors, "numbers": numbers}


def write_random_states(states: dict[str, Any], path: Path) -> None:
    """Write the result of `random_states` to a file; raises OSError if that fails."""
    try:
        save_file(states["tensors"], path, metadata={"numbers": json.dumps(states["numbers"])})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def restore_random_states(path: Path) -> None:
    """Set every generator of this process from a file of `write_random_states`; raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    version, internal, gauss_next = numbers["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, place, has_gauss, gauss = numbers["numpy"]
    np.random.set_state((kind, tensors["numpy"].view(torch.uint32).numpy(), place, has_gauss, gauss))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    tracker = tensor_parallel.get_cuda_rng_tracker()
    states = tracker.get_states()
    for name, state in states.items():
        saved = tensors.get(_TRACKER + name)
        if saved is not None and isinstance(state, Tensor):
            states[name] = saved
        elif saved is not None:
            state.set_state(saved)
    tracker.set_states(states)
