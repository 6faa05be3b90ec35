"""Which errors of torch mean that a rank or its GPU is gone, so that the run may be begun again."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megacov.trainer.loop import _is_broken_device, _is_lost_peer


@pytest.mark.parametrize(
    ("error", "is_lost", "is_broken"),
    [
        (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp: remote process exited"), True, False),
        (dist.DistNetworkError("Connection was likely closed."), True, False),
        (dist.DistStoreError("wait timeout after 300000ms"), True, False),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:1"), True, False),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False, False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False, False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_was_lost(error: RuntimeError, is_lost: bool, is_broken: bool) -> None:
    assert (_is_lost_peer(error), _is_broken_device(error)) == (is_lost, is_broken)
