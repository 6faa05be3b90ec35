"""One asynchronous client for every rollout server: SGLang, and the embedded one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Literal

import httpx

from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import Capabilities, read_capabilities
from megacov.rollout.client.connection import parsed, what_happened
from megacov.rollout.client.weight_calls import WeightCalls
from megacov.rollout.client.wire import GenerateRequest, check_prompt, read_completions
from megacov.types import Completion

PauseMode = Literal["abort", "retract", "in_place"]

_INFO_TIMEOUT_S = 30.0
_HEALTH_POLL_S = 0.2


class RolloutClient(WeightCalls):
    """Talks to one server, within one event loop.

    Every call ends within its deadline, with an answer that was checked or with a RolloutError that says what the
    server said. 408, 429, 5xx and lost connections are tried again, with exponential backoff and jitter, unless the
    first attempt may have changed what the second one would find.
    """

    def __init__(self, address: str, *, vocab_size: int, **connection: Any) -> None:
        """Set up; nothing is sent yet.

        Args:
            address: of the server, such as http://127.0.0.1:30000.
            vocab_size: rows of the model's embedding.
            **connection: further arguments of `Connection`.
        """
        super().__init__(address, **connection)
        self._vocab_size = vocab_size

    async def learn_capabilities(self) -> Capabilities:
        """Ask the server once for its version, and talk to it as that version wants from now on.

        Returns:
            What it can do, also kept in `capabilities`.

        Raises:
            RolloutError: no answer, or a version too old to talk to.
        """
        self.capabilities = read_capabilities(await self.server_info(), server=self.address)
        return self.capabilities

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample n completions of one prompt. Aborted completions are among them, with what they have.

        Log-probs are those of the distribution scaled by the temperature, before top-p and top-k cut it; at temperature
        0 they are not scaled. A server whose environment says SGLANG_RETURN_ORIGINAL_LOGPROB never scales them: do not.

        Args:
            request: what to sample.

        Returns:
            n completions.

        Raises:
            DataError: if the prompt has a token outside the vocabulary.
            RolloutError: if the server did not answer, or not with what was asked for.
        """
        check_prompt(request.input_ids, vocab_size=self._vocab_size)
        if request.sampling_seed is not None and not self.capabilities.request_seeds:
            raise RolloutError(
                f"{self.address} would not follow the seed of a request; start it with "
                "--enable-deterministic-inference, or send none."
            )
        response = await self.send("POST", "/generate", request.body(), timeout_s=self.request_timeout_s)
        return read_completions(
            response.content, num_completions=request.n, vocab_size=self._vocab_size, server=self.address
        )

    async def model_info(self, timeout_s: float = _INFO_TIMEOUT_S) -> dict[str, Any]:
        """Ask the server about its model.

        Args:
            timeout_s: deadline.

        Returns:
            What it says, `weight_version` among it.
        """
        return await self._get_info("/model_info", timeout_s)

    async def server_info(self) -> dict[str, Any]:
        """What the server says of itself, its SGLang `version` among it; keys too, so show it to nobody."""
        return await self._get_info("/server_info", _INFO_TIMEOUT_S)

    async def pause(self, mode: PauseMode) -> None:
        """Stop generation between two tokens.

        Args:
            mode: abort ends running requests, retract lets them be read anew after the pause, in_place keeps their
                keys and values. A server before 0.5.6 aborts in any case.
        """
        body = {"mode": mode} if self.capabilities.pause_takes_body else None
        await self.send("POST", "/pause_generation", body, timeout_s=self.request_timeout_s)

    async def resume(self) -> None:
        """Go on after a pause."""
        body: dict[str, Any] | None = {} if self.capabilities.pause_takes_body else None
        await self.send("POST", "/continue_generation", body, timeout_s=self.request_timeout_s)

    async def release_memory(self) -> None:
        """Have a server that is idle free its GPU memory: weights, keys and values, CUDA graphs."""
        await self.send("POST", "/release_memory_occupation", {}, timeout_s=self.request_timeout_s, is_repeatable=False)

    async def resume_memory(self, tags: Sequence[str]) -> None:
        """Have it take memory again. The content is undefined.

        Args:
            tags: of what it has freed: weights, kv_cache, cuda_graph.
        """
        body = {"tags": list(tags)}
        await self.send(
            "POST", "/resume_memory_occupation", body, timeout_s=self.request_timeout_s, is_repeatable=False
        )

    async def flush_cache(self) -> None:
        """Drop the prefix cache, which belongs to the old weights after an update."""
        await self.send("POST", "/flush_cache", {}, timeout_s=self.request_timeout_s)

    async def abort_request(self, rid: str | None) -> None:
        """End a request under way; it is answered with what it has, and with the reason "abort".

        Args:
            rid: of the request, which is not an error if there is none such; None ends all.
        """
        body = {"abort_all": True} if rid is None else {"rid": rid}
        await self.send("POST", "/abort_request", body, timeout_s=self.request_timeout_s)

    async def is_healthy(self, timeout_s: float) -> bool:
        """Whether the server generates now.

        Args:
            timeout_s: deadline.

        Returns:
            False also if it does not answer in time.
        """
        try:
            return (await self.send_once("GET", "/health", None, timeout_s=timeout_s)).is_success
        except (httpx.RequestError, TimeoutError):
            return False

    async def wait_healthy(self, timeout_s: float) -> None:
        """Wait until the server generates.

        Args:
            timeout_s: deadline.

        Raises:
            RolloutError: if it does not in time.
        """
        deadline = time.monotonic() + timeout_s
        said = "no attempt was made"
        while (left_s := deadline - time.monotonic()) > 0.0:
            try:
                response = await self.send_once("GET", "/health", None, timeout_s=left_s)
            except (httpx.RequestError, TimeoutError) as error:
                said = what_happened(error)
            else:
                if response.is_success:
                    return
                said = f"status {response.status_code}"
            await asyncio.sleep(_HEALTH_POLL_S)
        raise RolloutError(f"{self.address} was not healthy within {timeout_s:g} s ({said}); look at the server's log.")

    async def _get_info(self, path: str, timeout_s: float) -> dict[str, Any]:
        timeout_s = min(timeout_s, self.request_timeout_s)
        response = await self.send("GET", path, None, timeout_s=timeout_s, accepts_404=True)
        if response.status_code == httpx.codes.NOT_FOUND:  # SGLang before 0.5.6
            response = await self.send("GET", path.replace("/", "/get_"), None, timeout_s=timeout_s)
        return parsed(response, self.address)
