"""Weights to servers on the same machine, by requests: on a GPU they name its memory, on a CPU they hold the bytes."""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from megacov.config.addresses import is_loopback
from megacov.errors import RolloutError
from megacov.rollout import RolloutClient
from megacov.weight_sync.session import SessionTransport

if TYPE_CHECKING:
    from torch import Tensor


class TensorTransport(SessionTransport):
    """A `WeightTransport` by update_weights_from_tensor, for servers on this machine alone.

    The requests hold pickles, which nobody should take from another machine, so an address that is not of the loopback
    is refused. On a GPU, a server must see the trainer's GPU under the same number as the trainer.
    """

    async def _prepare(self) -> None:
        """Nothing but to look at the addresses."""
        await self._everywhere(_check_is_local)

    async def _send(self, bucket: Sequence[tuple[str, Tensor]]) -> None:
        payload = serialize(bucket)
        # Memory of a GPU stays as it is until every server has answered that it has read it.
        await self._everywhere(
            lambda client: client.weights.take_tensors([payload] * client.weights.num_ranks, flush_cache=False)
        )


def serialize(bucket: Sequence[tuple[str, Tensor]]) -> str:
    """Tensors in the form that SGLang's update_weights_from_tensor takes.

    Args:
        bucket: weights by name; on a GPU they must stay as they are until the server has taken them.

    Returns:
        base64 of a pickle: with the bytes of tensors on the CPU, with handles of CUDA's to those on a GPU.
    """
    named = [(name, tensor.detach().contiguous()) for name, tensor in bucket]
    if all(tensor.device.type == "cpu" for _, tensor in named):
        # ForkingPickler would name shared memory, which a manager process keeps that outlives this one.
        return base64.b64encode(pickle.dumps([(name, tensor.clone()) for name, tensor in named])).decode("ascii")
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(named)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


async def _check_is_local(client: RolloutClient) -> None:
    if not is_loopback(urlsplit(client.address).hostname or ""):
        raise RolloutError(
            f"weight_sync.transport is ipc and {client.address} is not on the loopback of this machine: start the "
            "servers on rollout.host=127.0.0.1, or set weight_sync.transport=broadcast."
        )
