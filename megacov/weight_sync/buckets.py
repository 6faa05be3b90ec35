"""Weights in buckets: many tensors laid one behind another as bytes, so that messages are large and memory bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from megacov.types import WeightBucket

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FilledBucket:
    """A bucket with its bytes. data: [n] uint8, the tensors in the order of `content`."""

    content: WeightBucket
    data: Tensor


def fill_buckets(named_tensors: Iterable[tuple[str, Tensor]], *, max_bytes: int) -> Iterator[FilledBucket]:
    """Put tensors into buckets, in order. Holds one bucket at a time.

    Args:
        named_tensors: every weight by its Hugging Face name, any shapes and dtypes.
        max_bytes: of a bucket, unless one tensor alone is larger.

    Yields:
        Buckets that together hold every tensor once.
    """
    pending: list[tuple[str, Tensor]] = []
    num_bytes = 0
    for name, tensor in named_tensors:
        if pending and num_bytes + tensor.nbytes > max_bytes:
            yield _fill(pending)
            pending, num_bytes = [], 0
        pending.append((name, tensor.detach()))
        num_bytes += tensor.nbytes
    if pending:
        yield _fill(pending)


def _fill(pending: list[tuple[str, Tensor]]) -> FilledBucket:
    content = WeightBucket(
        names=tuple(name for name, _ in pending),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in pending),
        shapes=tuple(tuple(tensor.shape) for _, tensor in pending),
        is_flattened=True,
    )
    return FilledBucket(content, torch.cat([tensor.contiguous().flatten().view(torch.uint8) for _, tensor in pending]))
