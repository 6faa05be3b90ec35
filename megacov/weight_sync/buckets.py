"""Buckets of many tensors, so that messages are large and memory is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from megacov.types import WeightBucket

if TYPE_CHECKING:
    from torch import Tensor


def in_buckets(named_tensors: Iterable[tuple[str, Tensor]], *, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Put tensors into buckets, in order. One bucket is held at a time.

    Args:
        named_tensors: weights by name, any shapes and dtypes.
        max_bytes: largest bucket, unless one tensor alone is larger. [bytes]

    Yields:
        Buckets that together hold every tensor once.
    """
    pending: list[tuple[str, Tensor]] = []
    num_bytes = 0
    for name, tensor in named_tensors:
        if pending and num_bytes + tensor.nbytes > max_bytes:
            yield pending
            pending, num_bytes = [], 0
        pending.append((name, tensor.detach()))
        num_bytes += tensor.nbytes
    if pending:
        yield pending


def describe(bucket: Sequence[tuple[str, Tensor]]) -> WeightBucket:
    """Describe a bucket to a server, which receives it as one message and must take it apart."""
    return WeightBucket(
        names=tuple(name for name, _ in bucket),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket),
        shapes=tuple(tuple(tensor.shape) for _, tensor in bucket),
        is_flattened=True,
    )


def flatten(bucket: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Concatenate the bytes of all tensors.

    Args:
        bucket: weights by name, on one device.

    Returns:
        [n] uint8, on the same device.
    """
    return torch.cat([tensor.contiguous().flatten().view(torch.uint8) for _, tensor in bucket])
