"""One asynchronous client for every rollout server: SGLang's and the embedded one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from megacov.config.transports import PauseMode
from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import Capabilities, read_capabilities
from megacov.rollout.client.connection import Connection, what_happened
from megacov.rollout.client.reply import Reply, parsed
from megacov.rollout.client.weight_calls import WeightCalls
from megacov.rollout.client.wire import GenerateRequest, check_prompt, read_completions
from megacov.types import Completion

_INFO_TIMEOUT_S = 30.0
_HEALTH_POLL_S = 0.2


class RolloutClient:
    """Talks to one server. Use it within one event loop.

    Every call ends within its deadline, with a checked answer or with a RolloutError that quotes the server. 408, 429,
    5xx and lost connections are retried, with exponential backoff and jitter, unless the first attempt may have
    changed what the second one would find.

    connection: HTTP with the server.
    weights: calls that give the server new weights.
    """

    def __init__(self, address: str, *, vocab_size: int, **connection: Any) -> None:
        """Send nothing yet.

        Args:
            address: URL, such as http://127.0.0.1:30000.
            vocab_size: rows of the model's embedding.
            **connection: further arguments of `Connection`.
        """
        self.connection = Connection(address, **connection)
        self.weights = WeightCalls(self.connection)
        self._vocab_size = vocab_size

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.connection.aclose()

    @property
    def address(self) -> str:
        """URL of the server."""
        return self.connection.address

    @property
    def capabilities(self) -> Capabilities:
        """Abilities of the server; those of the newest contract until `learn_capabilities` has asked."""
        return self.connection.capabilities

    @property
    def num_retries(self) -> int:
        """Requests sent again so far."""
        return self.connection.num_retries

    @property
    def request_timeout_s(self) -> float:
        """Deadline of one call, retries included. [s]"""
        return self.connection.request_timeout_s

    async def learn_capabilities(self) -> Capabilities:
        """Ask the server for its version, and follow that version's contract from now on.

        Returns:
            Abilities of the server, also kept in `capabilities`.

        Raises:
            RolloutError: no answer, or a version too old to talk to.
        """
        self.connection.capabilities = read_capabilities(await self.server_info(), server=self.address)
        return self.capabilities

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample n completions of one prompt. Aborted completions are returned with the tokens they have.

        Log-probs are those of the distribution scaled by the temperature, before top-p and top-k cut it; at temperature
        0 they are not scaled. Do not set SGLANG_RETURN_ORIGINAL_LOGPROB for a server: it turns the scaling off.

        Args:
            request: the prompt and how to complete it.

        Returns:
            n completions.

        Raises:
            DataError: the prompt has a token outside the vocabulary.
            RolloutError: the server did not answer, or not with what was asked for.
        """
        check_prompt(request.input_ids, vocab_size=self._vocab_size)
        if request.sampling_seed is not None and not self.capabilities.request_seeds:
            raise RolloutError(
                f"{self.address} would ignore the seed of a request; start it with --enable-deterministic-inference, "
                "or send none."
            )
        reply = await self._post("/generate", request.body())
        return read_completions(
            reply.content, num_completions=request.n, vocab_size=self._vocab_size, server=self.address
        )

    async def model_info(self, timeout_s: float = _INFO_TIMEOUT_S) -> dict[str, Any]:
        """Ask the server about its model, `weight_version` included."""
        return await self._get_info("/model_info", timeout_s)

    async def server_info(self) -> dict[str, Any]:
        """Ask for the server's settings, its SGLang `version` included. They hold keys: show them to nobody."""
        return await self._get_info("/server_info", _INFO_TIMEOUT_S)

    async def pause(self, mode: PauseMode) -> None:
        """Stop generation between two tokens.

        Args:
            mode: abort ends running requests; retract drops their keys and values, which are recomputed after the
                pause; in_place keeps them. A server before 0.5.6 always aborts.
        """
        await self._post("/pause_generation", {"mode": mode} if self.capabilities.pause_takes_body else None)

    async def resume(self) -> None:
        """Resume generation after a pause."""
        await self._post("/continue_generation", {} if self.capabilities.pause_takes_body else None)

    async def release_memory(self) -> None:
        """Have an idle server free its GPU memory: weights, keys and values, CUDA graphs."""
        await self._post("/release_memory_occupation", {}, is_repeatable=False)

    async def resume_memory(self, tags: Sequence[str]) -> None:
        """Have the server allocate memory again; its content is undefined.

        Args:
            tags: parts that the server has freed: weights, kv_cache, cuda_graph.
        """
        await self._post("/resume_memory_occupation", {"tags": list(tags)}, is_repeatable=False)

    async def flush_cache(self) -> None:
        """Drop the prefix cache, which is stale after an update of the weights."""
        await self._post("/flush_cache", {})

    async def abort_request(self, rid: str | None) -> None:
        """End a running request; it is answered with the tokens it has and the finish reason "abort".

        Args:
            rid: request id; an unknown one is no error. None ends all requests.
        """
        await self._post("/abort_request", {"abort_all": True} if rid is None else {"rid": rid})

    async def is_healthy(self, timeout_s: float) -> bool:
        """Whether the server generates; False also if it does not answer within `timeout_s`."""
        try:
            return (await self.connection.send_once("GET", "/health", None, timeout_s=timeout_s)).is_success
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def wait_healthy(self, timeout_s: float) -> None:
        """Wait until the server generates; raises RolloutError if it does not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        why = "no attempt was made"
        while (left_s := deadline - time.monotonic()) > 0.0:
            try:
                reply = await self.connection.send_once("GET", "/health", None, timeout_s=left_s)
            except (aiohttp.ClientError, TimeoutError) as error:
                why = what_happened(error)
            else:
                if reply.is_success:
                    return
                why = f"status {reply.status}"
            await asyncio.sleep(_HEALTH_POLL_S)
        raise RolloutError(f"{self.address} was not healthy within {timeout_s:g} s ({why}); look at the server's log.")

    async def _post(self, path: str, body: dict[str, Any] | None, *, is_repeatable: bool = True) -> Reply:
        return await self.connection.send(
            "POST", path, body, timeout_s=self.request_timeout_s, is_repeatable=is_repeatable
        )

    async def _get_info(self, path: str, timeout_s: float) -> dict[str, Any]:
        timeout_s = min(timeout_s, self.request_timeout_s)
        reply = await self.connection.send("GET", path, None, timeout_s=timeout_s, accepts_404=True)
        if reply.is_not_found:  # SGLang before 0.5.6
            reply = await self.connection.send("GET", path.replace("/", "/get_"), None, timeout_s=timeout_s)
        return parsed(reply, self.address)
