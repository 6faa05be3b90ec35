"""Checksums that servers must report after a push, computed from the trainer's weights without any transport.

The weights are gathered and cut into a server's shards by the rules that the tests of the plan use. SGLang 0.5.23 on
a CPU sums a tensor up as the first 8 bytes of the SHA-256 of its bytes (`srt/utils/weight_checker.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from megacov.errors import WeightSyncError
from megacov.megatron.families.shape import ModelShape
from megacov.plan.weight_parts import ServerLayout
from tests.support.weight_shards import server_shards

Sums = Sequence[Mapping[str, str]]
"""For each rank of a server: SGLang's name -> checksum."""


def tensor_sum(values: Tensor) -> str:
    """Checksum of a tensor on the CPU, as SGLang reports it."""
    return hashlib.sha256(values.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()[:16]


def expected_sums(weights: Mapping[str, Tensor], shape: ModelShape, *, num_ranks: int) -> Sums:
    """Checksums of the ranks of a server that holds these weights.

    Args:
        weights: whole tensors by Hugging Face name, in the servers' dtype.
        shape: sizes of the model.
        num_ranks: tensor-parallel ranks of the server.

    Returns:
        The sums of each rank.
    """
    servers = ServerLayout(1, num_ranks)
    return [
        {name: tensor_sum(each) for name, each in server_shards(dict(weights), shape, servers, rank).items()}
        for rank in range(num_ranks)
    ]


def faults_of(before: Sums, expected: Sums, found: Sums) -> list[str]:
    """What is wrong with a server after a push, tensor by tensor; also what no push could have got wrong.

    Args:
        before: sums before the push.
        expected: sums of what was pushed.
        found: sums after the push.

    Returns:
        A phrase for each tensor that the server holds otherwise, or held already.
    """
    faults = []
    for rank, (old, new, now) in enumerate(zip(before, expected, found, strict=True)):
        for name in sorted(old.keys() | new.keys() | now.keys()):
            if now.get(name) != new.get(name):
                faults.append(f"rank {rank} holds other bits of {name} than were pushed")
            elif old.get(name) == new.get(name):
                faults.append(f"rank {rank} held these bits of {name} before the push")
    return faults


class PushCheck:
    """Compares what servers hold after each push with the weights of that very push."""

    def __init__(self, read: Callable[[], Sequence[Sums]], shape: ModelShape) -> None:
        """Read what the servers hold at first.

        Args:
            read: asks every server for its sums.
            shape: sizes of the model.
        """
        self._read, self._shape, self._held = read, shape, read()
        self.num_pushes = 0

    def check(self, weights: Mapping[str, Tensor], by: str) -> None:
        """Compare every rank of every server, after a push.

        Args:
            weights: what was pushed, whole, by Hugging Face name.
            by: name of the transport, for the message.

        Raises:
            WeightSyncError: a server holds other bits, or held the same bits before the push.
        """
        before, self._held = self._held, self._read()
        expected = expected_sums(weights, self._shape, num_ranks=len(before[0]))
        for number, (old, now) in enumerate(zip(before, self._held, strict=True)):
            faults = faults_of(old, expected, now)
            if faults:
                raise WeightSyncError(
                    f"After a push by {by}, server {number}: {len(faults)} faults, first: {faults[0]}."
                )
        self.num_pushes += 1
