"""Decides which tensors the Triton kernels take; the torch path takes all others."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# "1" turns the kernels on. On a GPU they are off otherwise, because none has been measured or checked on one yet.
VARIABLE = "MEGACOV_KERNELS"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    """Whether the kernels take these logits.

    float64 is left to torch, as are logits whose columns do not lie side by side.

    Args:
        logits: [t, v/tp] float; its values are not read.

    Returns:
        The verdict. It depends on device, dtype, shape and strides alone, not on the rank.
    """
    return logits.dtype in _DTYPES and logits.numel() > 0 and logits.stride(1) == 1 and runs_on(logits)


@cache
def _has_triton() -> bool:
    try:
        import triton.language  # noqa: F401
    except ImportError:
        return False
    return True
