"""Weights in requests to servers on this machine: GPU tensors by memory handle, CPU tensors by value."""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Iterable, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import RunOnLoop
from megacov.weight_sync.reach import is_on_loopback, not_on_loopback
from megacov.weight_sync.session import BucketTransport, SessionSettings

if TYPE_CHECKING:
    from torch import Tensor


class TensorTransport(BucketTransport):
    """Weights by SGLang's update_weights_from_tensor, only for servers on this machine.

    The requests hold pickles, which no server should accept from another machine, so addresses outside the loopback
    are refused. A server must see the trainer's GPU under the same number as the trainer does.
    """

    @classmethod
    def from_config(
        cls, config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
    ) -> TensorTransport:
        """See `WeightTransport.from_config`."""
        return cls(clients, run=run, settings=SessionSettings.from_section(config.weight_sync))

    def _prepare(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Check the addresses."""
        self._run(self._everywhere(_check_is_local))

    async def _send(self, bucket: Sequence[tuple[str, Tensor]]) -> None:
        payload = serialize(bucket)
        # GPU memory must not change until every server has answered that it has read it.
        await self._everywhere(
            lambda client: client.weights.take_tensors([payload] * client.weights.num_ranks, flush_cache=False)
        )


def serialize(bucket: Sequence[tuple[str, Tensor]]) -> str:
    """Pickle tensors as SGLang's update_weights_from_tensor takes them.

    Args:
        bucket: weights by name; those on a GPU must not change until the server has taken them.

    Returns:
        base64 of a pickle, with the bytes of CPU tensors and CUDA memory handles of GPU tensors.
    """
    named = [(name, tensor.detach().contiguous()) for name, tensor in bucket]
    if all(tensor.device.type == "cpu" for _, tensor in named):
        # ForkingPickler would move the tensors to shared memory, held by a manager process that outlives this one.
        return base64.b64encode(pickle.dumps([(name, tensor.clone()) for name, tensor in named])).decode("ascii")
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(named)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


async def _check_is_local(client: RolloutClient) -> None:
    if not is_on_loopback(client.address):
        raise RolloutError(not_on_loopback("ipc", client.address))
