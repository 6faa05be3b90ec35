"""Decides which tensors the Triton kernels take, and which the loops for a CPU; the torch path takes all others."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# "1" turns kernels and loops on. They are off otherwise: no kernel has been measured or checked on a GPU yet, and a
# process compiles the loops in seconds, which they do not save in a small run on a CPU.
VARIABLE = "MEGACOV_KERNELS"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LOOP_DTYPES = (torch.bfloat16, torch.float32)

_logger = logging.getLogger(__name__)


class RowKernels(NamedTuple):
    """Both passes over a shard: `reduce_rows` for `shard_statistics`, `write_rows` for `write_gradient`."""

    reduce_rows: Callable[..., Tensor]
    write_rows: Callable[..., None]


def row_kernels(logits: Tensor) -> RowKernels | None:
    """The kernels or loops that take these logits.

    Args:
        logits: [t, v/tp] float; its values are not read.

    Returns:
        Both passes, or None for the torch path.
    """
    # Imported only here: not every machine has Triton or numba.
    if takes(logits):
        from megacov.ops.kernels import backward, forward

        return RowKernels(forward.reduce_rows, backward.write_rows)
    if loops_take(logits):
        from megacov.ops.kernels import loops

        return RowKernels(loops.reduce_rows, loops.write_rows)
    return None


def runs_on(tensor: Tensor) -> bool:
    """Whether kernels take tensors of this device.

    They run on a GPU if MEGACOV_KERNELS is 1 in the environment, or in Triton's interpreter where TRITON_INTERPRET is 1
    unless MEGACOV_KERNELS is 0. Machines without Triton are left to torch.

    Args:
        tensor: any tensor; its values are not read.

    Returns:
        The verdict.
    """
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (
        os.environ.get(VARIABLE, "1" if is_interpreted else "0") == "1"
        and (tensor.is_cuda or (is_interpreted and tensor.device.type == "cpu"))
        and _has_triton()
    )


def takes(logits: Tensor) -> bool:
    """Whether the Triton kernels take these logits.

    float64 is left to torch, as are logits whose columns do not lie side by side.

    Args:
        logits: [t, v/tp] float; its values are not read.

    Returns:
        The verdict. It depends on device, dtype, shape and strides alone, not on the rank.
    """
    return logits.dtype in _DTYPES and logits.numel() > 0 and logits.stride(1) == 1 and runs_on(logits)


def loops_take(logits: Tensor) -> bool:
    """Whether the loops that numba compiles take these logits.

    They run on a CPU if MEGACOV_KERNELS is 1 in the environment, numba is installed and torch has one thread, as a rank
    on a CPU has: the loops have one. Other dtypes are left to torch, as are logits whose columns do not lie side by
    side.

    Args:
        logits: [t, v/tp] float; its values are not read.

    Returns:
        The verdict. Ranks on machines that differ in it still get equal results, since each combines what all computed.
    """
    return (
        os.environ.get(VARIABLE) == "1"
        and logits.device.type == "cpu"
        and logits.dtype in _LOOP_DTYPES
        and logits.numel() > 0
        and logits.stride(1) == 1
        and torch.get_num_threads() == 1
        and _has_numba()
    )


@cache
def _has_triton() -> bool:
    try:
        import triton.language  # noqa: F401
    except ImportError as error:
        _log_missing("Triton", error)
        return False
    return True


@cache
def _has_numba() -> bool:
    try:
        import numba
    except (ImportError, OSError) as error:  # OSError: its compiler's library cannot be loaded
        _log_missing("numba", error)
        return False
    return not numba.config.DISABLE_JIT


def _log_missing(name: str, error: Exception) -> None:
    _logger.warning("%s cannot be imported (%s): torch computes instead of the kernels asked for", name, error)
