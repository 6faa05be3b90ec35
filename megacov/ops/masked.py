"""Sums over masked tokens of a group, in float64, that are bit-equal in every parallel layout.

Floating-point addition depends on its order, and the order of tokens depends on the layout. Here each value is split
into two parts that are multiples of fixed powers of two, chosen so that float64 adds either part without rounding. The
order of exact additions does not matter. Shapes: [...] tokens of this rank, any shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.parallel.collectives import all_reduce_sum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.distributed import ProcessGroup

# A float64 holds 53 bits. Sums of multiples of 2**-20 are exact below 2**33. The rest of a value is at most 2**-21, so
# sums of 2**26 (67 million) rests, rounded to multiples of 2**-48, are exact too. A float32 above 3e-8 needs no
# rounding at all. Beyond these limits the sums are as good as plain float64 sums.
COARSE = 2.0**20
FINE = 2.0**48

CPU_BLOCK = 1 << 15
"""Elements of a block: a quarter of a megabyte in float64."""


def masked_sum(values: Tensor, mask: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Sum of the masked values over all ranks of `group`.

    Args:
        values: [...] float; read only. Values outside the mask are ignored, NaN included.
        mask: [...] bool.
        group: ranks that hold the other tokens.

    Returns:
        [] float64, detached, equal on all ranks and for every split of the tokens.

    Collectives: group: SUM [2] float64.
    Gradient: none.
    """
    parts = all_reduce_sum(exact_sum_parts(values, mask), group=group)
    return parts.sum()


def masked_mean(values: Tensor, mask: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Mean of the masked values over all ranks of `group`.

    Args:
        values: [...] float; read only. Values outside the mask are ignored, NaN included.
        mask: [...] bool.
        group: ranks that hold the other tokens.

    Returns:
        [] float64, detached, equal on all ranks and for every split of the tokens; NaN if no token is masked.

    Collectives: group: SUM [3] float64.
    Gradient: none.
    """
    parts = torch.cat([exact_sum_parts(values, mask), mask.sum(dtype=torch.float64).view(1)])
    coarse, fine, count = all_reduce_sum(parts, group=group)
    return (coarse + fine) / count


def exact_sum_parts(values: Tensor, mask: Tensor) -> Tensor:
    """This rank's share of a layout-free sum: sum the parts over ranks elementwise, then add the two parts.

    Args:
        values: [...] float; read only.
        mask: [...] bool.

    Returns:
        [2] float64, detached: the sum of the multiples of 2**-20, and the sum of the rests.

    Raises:
        ValueError: if the shapes differ or the mask is not bool.
    """
    check_mask(values, mask)
    parts = [exact_parts(*block).sum(1) for block in flat_blocks(values.detach(), mask)]
    return torch.stack(parts).sum(0)


def exact_parts(values: Tensor, mask: Tensor) -> Tensor:
    """The two parts of each value, which float64 adds without rounding in any order.

    Args:
        values: [...] float or bool; read only.
        mask: [...] bool.

    Returns:
        [2, ...] float64, detached, 0 outside the mask: the nearest multiples of 2**-20, and the rests.

    Raises:
        ValueError: if the shapes differ or the mask is not bool.
    """
    check_mask(values, mask)
    kept = values.detach().double().where(mask, 0.0)
    coarse = (kept * COARSE).round() / COARSE
    fine = ((kept - coarse) * FINE).round() / FINE
    return torch.stack([coarse, fine])


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, flat and in blocks whose intermediate results stay in a cache; in one block on a GPU.

    Args:
        *tensors: [...] of any dtype, on one device.

    Yields:
        [n] of each; one empty block if there are no elements.
    """
    size = CPU_BLOCK if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    yield from zip(*(tensor.reshape(-1).split(size) for tensor in tensors), strict=True)


def check_mask(values: Tensor, mask: Tensor) -> None:
    """Check that there is a flag for each value.

    Args:
        values: [...] of any dtype.
        mask: the flags.

    Raises:
        ValueError: if the shapes differ or the mask is not bool.
    """
    if values.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, but must be bool {tuple(values.shape)}")
