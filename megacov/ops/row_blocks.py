"""Splits a large [t, v] tensor into blocks of rows, so that intermediate results stay in a cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Size of one scratch buffer. On a CPU two fit into the cache of one core; on a GPU few large kernels are faster.
CPU_BLOCK_BYTES = 1 << 20
GPU_BLOCK_BYTES = 64 << 20

# A multiple of the elements that torch takes at once on any CPU: two vectors of 64 bytes.
_RUN = 64


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype to compute in: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_blocks(tensor: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Split the rows of a tensor into blocks, with two scratch buffers that every block reuses.

    Args:
        tensor: [t, v] float, v > 0; its values are not read.

    Yields:
        rows: the slice of rows of this block.
        first, second: [rows of the block, v] in the compute dtype, contiguous, uninitialised; `exp2` takes them.
    """
    num_rows, num_columns = tensor.shape
    dtype = compute_dtype(tensor.dtype)
    block_bytes = CPU_BLOCK_BYTES if tensor.device.type == "cpu" else GPU_BLOCK_BYTES
    step = min(max(1, block_bytes // (num_columns * dtype.itemsize)), max(1, num_rows))
    first, second = (tensor.new_empty(_whole_runs(step * num_columns), dtype=dtype) for _ in range(2))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        shape = (stop - start, num_columns)
        size = math.prod(shape)
        yield slice(start, stop), first[:size].view(shape), second[:size].view(shape)


def exp2(bits: Tensor, *, out: Tensor) -> None:
    """2 to the power of each element, with bits that do not depend on the element's place in a block.

    On a CPU torch computes the elements that follow the last whole run by another routine, which rounds differently.

    Args:
        bits: a scratch buffer of `row_blocks`.
        out: one of them, overwritten.
    """
    runs = (_whole_runs(bits.numel()),)
    torch.exp2(bits.as_strided(runs, (1,)), out=out.as_strided(runs, (1,)))


def _whole_runs(num_elements: int) -> int:
    return -(-num_elements // _RUN) * _RUN
