"""The calls that give a rollout server new weights; every reply is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from megacov.errors import RolloutError
from megacov.rollout.client.connection import Connection, RequestRefusedError
from megacov.rollout.client.reply import parsed
from megacov.rollout.client.wire import error_sentence
from megacov.types import WeightBucket, WeightGroup

_PROBE_TIMEOUT_S = 30.0
_NOTHING = "gARdlC4="  # base64 of the pickle of an empty list


class _RankChecksums(BaseModel):
    checksums: dict[str, str] = Field(min_length=1)


class _Checksums(BaseModel):
    ranks: list[_RankChecksums] = Field(min_length=1)


class WeightCalls:
    """New weights for one server: from disk, over a process group, or inside requests.

    A call that may have changed the server is not sent twice, so a lost reply is an error. Every call raises
    RolloutError if the server did not do what it was asked.
    """

    def __init__(self, connection: Connection) -> None:
        """Send nothing yet."""
        self._connection = connection

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel ranks of the server."""
        return self._connection.capabilities.tensor_parallel

    async def load_from_disk(self, model_path: str, *, weight_version: str, flush_cache: bool = True) -> None:
        """Have the server load weights.

        Args:
            model_path: folder of safetensors on the server's file system.
            weight_version: name of the new weights.
            flush_cache: whether to drop the prefix cache with the old weights.
        """
        body = {"model_path": model_path, "weight_version": weight_version, "flush_cache": flush_cache}
        await self._update("/update_weights_from_disk", body, f"load {model_path}", is_repeatable=True)

    async def begin(self) -> None:
        """Open an update by tensors. Servers before 0.5.21 have no such session and are not asked.

        Raises:
            RolloutError: the server refused, for example because a session is already open.
        """
        if self._connection.capabilities.weight_sessions:
            await self._update("/begin_weight_update", {}, "begin an update of its weights")

    async def end(self) -> None:
        """Close an update by tensors; the server then prepares the weights for inference.

        Raises:
            RolloutError: the server refused, for example because no session is open.
        """
        if self._connection.capabilities.weight_sessions:
            await self._update("/end_weight_update", {}, "end the update of its weights")

    async def abandon(self) -> None:
        """Close a failed update by tensors, if one is open. The weights stay mixed and keep the old name.

        Raises:
            RolloutError: the server did not answer.
        """
        # Both endpoints reach the process that holds the weights, so the reply shows whether that is alive.
        path = "/end_weight_update" if self._connection.capabilities.weight_sessions else "/flush_cache"
        timeout_s = min(self._connection.request_timeout_s, _PROBE_TIMEOUT_S)
        with suppress(RequestRefusedError):
            await self._connection.send("POST", path, {}, timeout_s=timeout_s)

    async def init_group(self, group: WeightGroup) -> None:
        """Have the server join a process group. It answers once rank 0, the trainer, has joined too."""
        body = {
            "master_address": group.master_address,
            "master_port": group.master_port,
            "rank_offset": group.rank_offset,
            "world_size": group.world_size,
            "group_name": group.name,
            "backend": group.backend,
        }
        await self._update("/init_weights_update_group", body, f"join the process group {group.name}")

    async def destroy_group(self, group_name: str) -> None:
        """Have the server leave a process group. Being in no such group is an error."""
        body = {"group_name": group_name}
        timeout_s = min(self._connection.request_timeout_s, _PROBE_TIMEOUT_S)
        await self._update(
            "/destroy_weights_update_group", body, f"leave the process group {group_name}", timeout_s=timeout_s
        )

    async def receive_broadcast(
        self, bucket: WeightBucket, *, group_name: str, weight_version: str | None = None, flush_cache: bool = True
    ) -> None:
        """Have the server receive tensors. It answers once the trainer, meanwhile, has broadcast them.

        The server silently skips a name that its model does not have. After an error its weights are mixed and keep
        the name of the old ones.

        Args:
            bucket: names, dtypes and shapes of the tensors.
            group_name: process group of the broadcast.
            weight_version: new name of the weights; None keeps the old one.
            flush_cache: whether to drop the prefix cache with the old weights.

        Raises:
            RolloutError: the server did not take all tensors.
        """
        capabilities, address = self._connection.capabilities, self._connection.address
        if bucket.is_flattened and not capabilities.flattened_buckets:
            raise RolloutError(f"{address} runs SGLang {capabilities.version}, which takes tensors only one by one.")
        body: dict[str, Any] = {
            "names": list(bucket.names),
            "dtypes": list(bucket.dtypes),
            "shapes": [list(shape) for shape in bucket.shapes],
            "group_name": group_name,
            "flush_cache": flush_cache,
        }
        if bucket.is_flattened:
            body["load_format"] = "flattened_bucket"
        if weight_version is not None:
            body["weight_version"] = weight_version
        await self._update("/update_weights_from_distributed", body, f"take {len(bucket.names)} tensors")

    async def take_tensors(self, payloads: Sequence[str], *, flush_cache: bool = True, as_held: bool = False) -> None:
        """Have the server take tensors whose bytes, or GPU memory handles, are in the request.

        Args:
            payloads: one base64-encoded pickle of a list of (name, tensor) per tensor-parallel rank.
            flush_cache: whether to drop the prefix cache with the old weights.
            as_held: whether each payload has parameters of its rank by the server's own names, in exactly the shapes
                that the rank holds; a server dies of any other. Otherwise all have whole Hugging Face tensors.
        """
        body: dict[str, Any] = {"serialized_named_tensors": list(payloads), "flush_cache": flush_cache}
        if as_held:
            body["load_format"] = "direct"
        await self._update("/update_weights_from_tensor", body, "take tensors")

    async def run_loader(self, loader: str) -> None:
        """Have every rank of the server call its custom weight loader, with nothing. It answers once all have returned.

        The server does not know whether they did what they should. One that does not have the loader would die, so look
        at its `Capabilities` first.

        Args:
            loader: module.function that the server was started with.
        """
        body = {"serialized_named_tensors": [_NOTHING] * self.num_ranks, "load_format": loader, "flush_cache": False}
        await self._update("/update_weights_from_tensor", body, f"run {loader}")

    async def set_version(self, weight_version: str, *, abort_requests: bool = False) -> None:
        """Rename the weights that the server holds.

        Args:
            weight_version: new name.
            abort_requests: whether to end running requests, which is the server's own default.

        Raises:
            RolloutError: the server kept the old name.
        """
        body = {"new_version": weight_version, "abort_all_requests": abort_requests}
        reply = await self._update("/update_weight_version", body, f"take the version {weight_version}")
        if reply.get("new_version") != weight_version:
            raise RolloutError(
                f"{self._connection.address} took the version {reply.get('new_version')!r} instead of {weight_version}."
            )

    async def checksums(self) -> tuple[dict[str, str], ...]:
        """Compute checksums of the server's weights. Equal weights have equal checksums, whichever way they came.

        Returns:
            One mapping per rank, by the server's own names, in which query, key and value are fused.

        Raises:
            RolloutError: the server cannot compute them; 0.5.21 cannot on a CPU.
        """
        reply = await self._update("/weights_checker", {"action": "checksum"}, "sum its weights up", is_repeatable=True)
        try:
            return tuple(rank.checksums for rank in _Checksums.model_validate(reply).ranks)
        except ValidationError as error:
            raise RolloutError(f"{self._connection.address} sent no checksums of its weights.") from error

    async def _update(
        self,
        path: str,
        body: Mapping[str, Any],
        what: str,
        *,
        is_repeatable: bool = False,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        connection = self._connection
        timeout_s = timeout_s or connection.request_timeout_s
        reply = await connection.send("POST", path, dict(body), timeout_s=timeout_s, is_repeatable=is_repeatable)
        answer = parsed(reply, connection.address)
        if answer.get("success") is not True:
            raise RolloutError(f"{connection.address} did not {what}: {error_sentence(reply.content)}")
        return answer
