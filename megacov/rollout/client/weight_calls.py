"""The calls by which a rollout server gets new weights, each with a reply that is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import Capabilities
from megacov.rollout.client.connection import Connection, RequestRefusedError, parsed
from megacov.rollout.client.wire import error_sentence
from megacov.types import WeightBucket, WeightGroup

_PROBE_TIMEOUT_S = 30.0


class _RankChecksums(BaseModel):
    checksums: dict[str, str] = Field(min_length=1)


class _Checksums(BaseModel):
    ranks: list[_RankChecksums] = Field(min_length=1)


class WeightCalls(Connection):
    """Weights by disk or by a process group.

    `capabilities` are those of the newest contract until the client has asked the server.
    """

    capabilities = Capabilities()

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel ranks of the server."""
        return self.capabilities.tensor_parallel

    async def update_weights_from_disk(self, model_path: str, *, weight_version: str, flush_cache: bool = True) -> None:
        """Let the server load new weights.

        Args:
            model_path: folder of safetensors, on the server's file system.
            weight_version: name of the new weights.
            flush_cache: drop the prefix cache with the old weights.

        Raises:
            RolloutError: the server did not load them.
        """
        body = {"model_path": model_path, "weight_version": weight_version, "flush_cache": flush_cache}
        await self._update("/update_weights_from_disk", body, f"load {model_path}", is_repeatable=True)

    async def begin_weight_update(self) -> None:
        """Open an update by tensors. A server before 0.5.21 knows no such session and is not asked.

        Raises:
            RolloutError: the server refused, as it does where one is open.
        """
        if self.capabilities.weight_sessions:
            await self._update("/begin_weight_update", {}, "begin an update of its weights")

    async def end_weight_update(self) -> None:
        """Close an update by tensors; the server then makes of them what it computes with.

        Raises:
            RolloutError: the server refused, as it does where none is open.
        """
        if self.capabilities.weight_sessions:
            await self._update("/end_weight_update", {}, "end the update of its weights")

    async def abandon_weight_update(self) -> None:
        """Close an update by tensors that failed, if one is open. The weights stay mixed, and keep the old name.

        Raises:
            RolloutError: the server did not answer.
        """
        # Either call goes through to what holds the weights, and so tells whether that still answers.
        path = "/end_weight_update" if self.capabilities.weight_sessions else "/flush_cache"
        with suppress(RequestRefusedError):
            await self.send("POST", path, {}, timeout_s=min(self.request_timeout_s, _PROBE_TIMEOUT_S))

    async def init_weights_update_group(self, group: WeightGroup) -> None:
        """Have the server join a process group; answers when rank 0 has joined as well.

        Args:
            group: whose rank 0 is the trainer, which must join meanwhile.

        Raises:
            RolloutError: the server did not join.
        """
        body = {
            "master_address": group.master_address,
            "master_port": group.master_port,
            "rank_offset": group.rank_offset,
            "world_size": group.world_size,
            "group_name": group.name,
            "backend": group.backend,
        }
        await self._update("/init_weights_update_group", body, f"join the process group {group.name}")

    async def destroy_weights_update_group(self, group_name: str) -> None:
        """Have the server leave a process group.

        Args:
            group_name: of the group.

        Raises:
            RolloutError: the server is in no such group.
        """
        body = {"group_name": group_name}
        timeout_s = min(self.request_timeout_s, _PROBE_TIMEOUT_S)
        await self._update(
            "/destroy_weights_update_group", body, f"leave the process group {group_name}", timeout_s=timeout_s
        )

    async def update_weights_from_distributed(
        self, bucket: WeightBucket, *, group_name: str, weight_version: str | None = None, flush_cache: bool = True
    ) -> None:
        """Have the server receive tensors; answers when they have been broadcast, which the trainer does meanwhile.

        The server leaves out, without a word, a name that its model does not have. After an error its weights are
        mixed, and keep the name of the old ones.

        Args:
            bucket: what is broadcast.
            group_name: of the process group.
            weight_version: name of the weights from now on; None keeps the present one.
            flush_cache: drop the prefix cache with the old weights.

        Raises:
            RolloutError: the server did not take all of them.
        """
        if bucket.is_flattened and not self.capabilities.flattened_buckets:
            raise RolloutError(
                f"{self.address} runs SGLang {self.capabilities.version}, which takes tensors only one by one."
            )
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

    async def update_weights_from_tensor(self, payloads: Sequence[str], *, flush_cache: bool = True) -> None:
        """Have the server take tensors that stand in the request, or whose memory the request names.

        Args:
            payloads: for each of its tensor-parallel ranks, base64 of a pickled list of (Hugging Face name, tensor).
            flush_cache: drop the prefix cache with the old weights.

        Raises:
            RolloutError: the server did not take all of them.
        """
        body = {"serialized_named_tensors": list(payloads), "flush_cache": flush_cache}
        await self._update("/update_weights_from_tensor", body, "take tensors")

    async def update_weight_version(self, weight_version: str, *, abort_requests: bool = False) -> None:
        """Give the present weights another name.

        Args:
            weight_version: the name.
            abort_requests: end the requests under way; the server's own default is to do so.

        Raises:
            RolloutError: the server kept the old name.
        """
        body = {"new_version": weight_version, "abort_all_requests": abort_requests}
        reply = await self._update("/update_weight_version", body, f"take the version {weight_version}")
        if reply.get("new_version") != weight_version:
            raise RolloutError(
                f"{self.address} took the version {reply.get('new_version')!r} instead of {weight_version}."
            )

    async def weight_checksums(self) -> tuple[dict[str, str], ...]:
        """Checksums of the weights that the server holds: equal where the weights are, whatever way they came.

        Returns:
            One mapping for each of its ranks, by its own names, in which query, key and value are one.

        Raises:
            RolloutError: the server cannot; 0.5.21 cannot on a CPU.
        """
        reply = await self._update("/weights_checker", {"action": "checksum"}, "sum its weights up", is_repeatable=True)
        try:
            return tuple(rank.checksums for rank in _Checksums.model_validate(reply).ranks)
        except ValidationError as error:
            raise RolloutError(f"{self.address} sent no checksums of its weights.") from error

    async def _update(
        self,
        path: str,
        body: Mapping[str, Any],
        what: str,
        *,
        is_repeatable: bool = False,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Most of these calls change what the next one would find, so a lost reply is an error."""
        timeout_s = timeout_s or self.request_timeout_s
        response = await self.send("POST", path, dict(body), timeout_s=timeout_s, is_repeatable=is_repeatable)
        reply = parsed(response, self.address)
        if reply.get("success") is not True:
            raise RolloutError(f"{self.address} did not {what}: {error_sentence(response.content)}")
        return reply
