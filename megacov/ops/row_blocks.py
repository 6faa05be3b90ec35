"""Splits a large [t, v] tensor into blocks of rows, so that intermediate results stay in a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Size of one scratch buffer. On a CPU two fit into the cache of one core; on a GPU few large kernels are faster.
CPU_BLOCK_BYTES = 1 << 20
GPU_BLOCK_BYTES = 64 << 20


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype to compute in: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_blocks(tensor: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Split the rows of a tensor into blocks, with two scratch buffers that every block reuses.

    Args:
        tensor: [t, v] float, v > 0; its values are not read.

    Yields:
        rows: the slice of rows of this block.
        first, second: [rows of the block, v] in the compute dtype, uninitialised.
    """
    num_rows, num_columns = tensor.shape
    dtype = compute_dtype(tensor.dtype)
    block_bytes = CPU_BLOCK_BYTES if tensor.device.type == "cpu" else GPU_BLOCK_BYTES
    step = min(max(1, block_bytes // (num_columns * dtype.itemsize)), max(1, num_rows))
    first, second = (tensor.new_empty((step, num_columns), dtype=dtype) for _ in range(2))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        yield slice(start, stop), first[: stop - start], second[: stop - start]
