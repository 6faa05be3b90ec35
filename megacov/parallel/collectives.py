"""Collectives over an explicit group. They are the identity on one rank and never write to an input.

`group=None` means "this rank alone". Results are detached: no gradient passes through a collective here.
On one rank the result may share memory with the input, so never write to a result.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def group_rank(group: ProcessGroup | None) -> int:
    """Rank of this process within `group`; 0 for None."""
    return 0 if group is None else group.rank()


def group_size(group: ProcessGroup | None) -> int:
    """Number of ranks in `group`; 1 for None."""
    return 1 if group is None else group.size()


def all_reduce_sum(tensor: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Elementwise sum over the ranks of `group`.

    Args:
        tensor: any shape, which is the same on all ranks; read only.
        group: ranks to add over.

    Returns:
        A detached tensor like the input, equal on all ranks.

    Collectives: group: SUM of the tensor.
    """
    return _all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)


def all_reduce_max(tensor: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Elementwise maximum over the ranks of `group`; NaN where any rank holds NaN.

    A backend's own MAX need not keep NaN: gloo's does only for NaN on rank 0. A minimum is the negated maximum of the
    negated values.

    Args:
        tensor: any shape, which is the same on all ranks; read only.
        group: ranks to compare.

    Returns:
        A detached tensor like the input, equal on all ranks.

    Collectives: group: MAX of the tensor; of twice its size if the tensor is of floats.
    """
    if group_size(group) == 1 or not tensor.is_floating_point():
        return _all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    is_nan = tensor.detach().isnan()
    pair = torch.stack([is_nan.to(tensor.dtype), tensor.detach().where(~is_nan, -torch.inf)])
    is_nan_anywhere, largest = _all_reduce(pair, op=dist.ReduceOp.MAX, group=group)
    return largest.where(is_nan_anywhere == 0, torch.nan)


def all_gather(tensor: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """The tensors of all ranks, stacked in rank order.

    Args:
        tensor: [...] any shape, which is the same on all ranks; read only.
        group: ranks to gather from.

    Returns:
        [group size, ...] detached, equal on all ranks.

    Collectives: group: all-gather of the tensor; none if it has no element.
    """
    size = group_size(group)
    source = tensor.detach().contiguous()
    if size == 1:
        return source.unsqueeze(0)
    gathered = source.new_empty((size, *source.shape))
    if source.numel() > 0:
        dist.all_gather(list(gathered.unbind(0)), source, group=group)
    return gathered


def reduce_scatter_sum(tensor: Tensor, *, group: ProcessGroup | None) -> Tensor:
    """Elementwise sum over the ranks of `group`; each rank keeps its own entry. The conjugate of `all_gather`.

    Args:
        tensor: [group size, ...] any shape, which is the same on all ranks; read only.
        group: ranks to add over.

    Returns:
        [...] detached: entry `group rank` of the sum.

    Collectives: group: reduce-scatter SUM of the tensor, an all-reduce except under NCCL; none if it has no element.
    """
    assert tensor.shape[0] == group_size(group), f"{tensor.shape[0]} entries for {group_size(group)} ranks"
    if tensor.numel() == 0:
        return tensor.detach()[group_rank(group)]
    if group_size(group) == 1 or dist.get_backend(group) != dist.Backend.NCCL:
        # gloo has none. torch emulates it with all-reduces, but torch 2.13 crashes there on a stacked input like this.
        return all_reduce_sum(tensor, group=group)[group_rank(group)]
    source = tensor.detach().contiguous()
    result = torch.empty_like(source[0])
    dist.reduce_scatter(result, list(source.unbind(0)), group=group)
    return result


def any_rank(flag: bool, *, group: ProcessGroup | None) -> bool:
    """Whether `flag` is true on at least one rank of `group`, so that a check that fails on one rank fails on all.

    Args:
        flag: this rank's value.
        group: ranks to ask.

    Returns:
        The same value on all ranks. Waits for the device.

    Collectives: group: MAX [1].
    """
    votes = torch.tensor([flag], dtype=torch.int32, device=_device_of(group))
    return bool(all_reduce_max(votes, group=group).item())


def broadcast_bytes(payload: bytes | None, *, src_rank: int, group: ProcessGroup | None) -> bytes:
    """Send the bytes of one rank, such as JSON, to every rank. Unlike object collectives, it unpickles nothing.

    Args:
        payload: bytes on the source rank; ignored on the others, where it may be None.
        src_rank: rank of the source within `group`.
        group: ranks that receive.

    Returns:
        The source's bytes.

    Collectives: group: broadcast [1] int64 (the length), then broadcast [length] uint8 unless it is 0.
    """
    is_source = group_rank(group) == src_rank
    if not is_source:
        payload = b""
    assert payload is not None, "the source of a broadcast needs a payload"
    if group_size(group) == 1:
        return payload
    device = _device_of(group)
    length = torch.tensor([len(payload)], device=device)
    dist.broadcast(length, group=group, group_src=src_rank)
    if length.item() == 0:
        return b""
    if is_source:
        data = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(device)
    else:
        data = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
    dist.broadcast(data, group=group, group_src=src_rank)
    return payload if is_source else data.cpu().numpy().tobytes()


def all_gather_bytes(payload: bytes, *, group: ProcessGroup | None) -> list[bytes]:
    """Gather the bytes of all ranks on every rank; lengths may differ. It unpickles nothing.

    Args:
        payload: bytes of this rank.
        group: ranks to gather from.

    Returns:
        One payload per rank, in rank order.

    Collectives: group: all-gather [1] int64 (the lengths), then all-gather [longest] uint8 unless that is 0.
    """
    if group_size(group) == 1:
        return [payload]
    device = _device_of(group)
    lengths: list[int] = all_gather(torch.tensor([len(payload)], device=device), group=group).flatten().tolist()
    if max(lengths) == 0:
        return [b""] * len(lengths)
    padded = torch.frombuffer(bytearray(payload.ljust(max(lengths), b"\0")), dtype=torch.uint8).to(device)
    rows = all_gather(padded, group=group).cpu().numpy()
    return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


def broadcast_tensor(tensor: Tensor | None, *, src_rank: int, group: ProcessGroup | None) -> Tensor:
    """Send the tensor of one rank to every rank; receivers need not know its shape or dtype.

    Args:
        tensor: any shape and dtype on the source rank, read only; ignored on the others, where it may be None.
        src_rank: rank of the source within `group`.
        group: ranks that receive.

    Returns:
        The source's tensor, detached: the tensor itself on the source, and on other ranks a copy on the group's device
        (the current GPU under NCCL, otherwise the CPU).

    Collectives: group: broadcast_bytes of dtype and shape, then broadcast of the values as uint8 unless there are none.
    """
    is_source = group_rank(group) == src_rank
    if not is_source:
        tensor = None
    else:
        assert tensor is not None, "the source of a broadcast needs a tensor"
        tensor = tensor.detach()
        if group_size(group) == 1:
            return tensor
    header = b"" if tensor is None else json.dumps([str(tensor.dtype), list(tensor.shape)]).encode()
    dtype_name, shape = json.loads(broadcast_bytes(header, src_rank=src_rank, group=group))
    device = _device_of(group)
    if tensor is None:
        received = torch.empty(shape, dtype=getattr(torch, dtype_name.removeprefix("torch.")), device=device)
    else:
        received = tensor.to(device).contiguous()
    if received.numel() > 0:
        # Sent as bytes, because gloo does not support every dtype.
        dist.broadcast(received.view(-1).view(torch.uint8), group=group, group_src=src_rank)
    return received if tensor is None else tensor


def _all_reduce(tensor: Tensor, *, op: dist.ReduceOp.RedOpType, group: ProcessGroup | None) -> Tensor:
    if group_size(group) == 1:
        return tensor.detach()
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=op, group=group)
    return result


def _device_of(group: ProcessGroup | None) -> torch.device:
    """The device whose memory the group's backend sends."""
    if group is not None and dist.get_backend(group) == dist.Backend.NCCL:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
