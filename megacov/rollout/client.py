"""One asynchronous client for every rollout server: SGLang, and the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from megacov.errors import RolloutError
from megacov.rollout.wire import GenerateRequest, check_prompt, error_sentence, read_completions
from megacov.types import Completion

PauseMode = Literal["abort", "retract", "in_place"]

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0
_INFO_TIMEOUT_S = 30.0
_HEALTH_POLL_S = 0.2
# Everything else wants the administrator's key, if there is one.
_OPEN_PATHS = frozenset({"/generate", "/health", "/model_info", "/get_model_info", "/server_info", "/get_server_info"})


class RolloutClient:
    """Talks to one server, within one event loop.

    Every call ends within its deadline, with an answer that was checked or with a RolloutError that says what the
    server said. 408, 429, 5xx and lost connections are tried again, with exponential backoff and jitter.
    """

    def __init__(
        self,
        address: str,
        *,
        vocab_size: int,
        request_timeout_s: float = 600.0,
        connect_timeout_s: float = 5.0,
        max_retries: int = 5,
        max_connections: int = 256,
        api_key: str | None = None,
        admin_key: str | None = None,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            address: of the server, such as http://127.0.0.1:30000.
            vocab_size: rows of the model's embedding.
            request_timeout_s: deadline of one call, retries included.
            connect_timeout_s: deadline of one attempt to connect.
            max_retries: further attempts after the first.
            max_connections: calls under way at a time; more wait, within their deadline.
            api_key: sent as a bearer token, if the server wants one.
            admin_key: sent instead with weights and control, if the server wants another one for these.
        """
        self.address = address.rstrip("/")
        self.num_retries = 0
        self._vocab_size = vocab_size
        self._request_timeout_s = request_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_retries = max_retries
        self._headers = _bearer(api_key)
        self._admin_headers = self._headers if admin_key is None else _bearer(admin_key)
        # One connection each, because the time httpx takes to choose among connections grows with their square.
        self._idle_lanes: list[httpx.AsyncClient] = []
        self._free_lanes = asyncio.Semaphore(max_connections)
        # Without certificates, where none are needed: loading them takes longer than a whole call.
        is_secure = self.address.startswith("https:")
        self._tls = ssl.create_default_context() if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def __aenter__(self) -> Self:
        """Nothing to do."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        while self._idle_lanes:
            await self._idle_lanes.pop().aclose()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample n completions of one prompt. Aborted completions are among them, with what they have.

        Args:
            request: what to sample.

        Returns:
            n completions.

        Raises:
            DataError: if the prompt has a token outside the vocabulary.
            RolloutError: if the server did not answer, or not with what was asked for.
        """
        check_prompt(request.input_ids, vocab_size=self._vocab_size)
        response = await self._send("POST", "/generate", request.body(), timeout_s=self._request_timeout_s)
        return read_completions(
            response.content, num_completions=request.n, vocab_size=self._vocab_size, server=self.address
        )

    async def model_info(self) -> dict[str, Any]:
        """What the server says of its model, `weight_version` among it."""
        return await self._get_info("/model_info")

    async def server_info(self) -> dict[str, Any]:
        """What the server says of itself, its SGLang `version` among it."""
        return await self._get_info("/server_info")

    async def pause(self, mode: PauseMode) -> None:
        """Stop generation between two tokens.

        Args:
            mode: abort ends running requests, retract lets them be read anew after the pause, in_place keeps their
                keys and values.
        """
        await self._send("POST", "/pause_generation", {"mode": mode}, timeout_s=self._request_timeout_s)

    async def resume(self) -> None:
        """Go on after a pause."""
        await self._send("POST", "/continue_generation", {}, timeout_s=self._request_timeout_s)

    async def flush_cache(self) -> None:
        """Drop the prefix cache, which belongs to the old weights after an update."""
        await self._send("POST", "/flush_cache", {}, timeout_s=self._request_timeout_s)

    async def update_weights_from_disk(self, model_path: str, *, weight_version: str, flush_cache: bool = True) -> None:
        """Let the server load new weights.

        Args:
            model_path: folder of safetensors, on the server's file system.
            weight_version: name of the new weights.
            flush_cache: drop the prefix cache with the old weights.
        """
        body = {"model_path": model_path, "weight_version": weight_version, "flush_cache": flush_cache}
        response = await self._send("POST", "/update_weights_from_disk", body, timeout_s=self._request_timeout_s)
        if _parsed(response, self.address).get("success") is not True:
            raise RolloutError(f"{self.address} did not load {model_path}: {error_sentence(response.content)}")

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
                response = await self._send_once("GET", "/health", None, timeout_s=left_s)
            except (httpx.TransportError, TimeoutError) as error:
                said = _what_happened(error)
            else:
                if response.is_success:
                    return
                said = f"status {response.status_code}"
            await asyncio.sleep(_HEALTH_POLL_S)
        raise RolloutError(f"{self.address} was not healthy within {timeout_s:g} s ({said}); look at the server's log.")

    async def _get_info(self, path: str) -> dict[str, Any]:
        response = await self._send("GET", path, None, timeout_s=_INFO_TIMEOUT_S, accepts_404=True)
        if response.status_code == httpx.codes.NOT_FOUND:  # SGLang before 0.5.6
            response = await self._send("GET", path.replace("/", "/get_"), None, timeout_s=_INFO_TIMEOUT_S)
        return _parsed(response, self.address)

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float, accepts_404: bool = False
    ) -> httpx.Response:
        deadline = time.monotonic() + timeout_s
        said = "no time was left"
        for attempt in range(self._max_retries + 1):
            if attempt:
                backoff_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                if time.monotonic() + backoff_s >= deadline:
                    break
                self.num_retries += 1
                await asyncio.sleep(backoff_s)
            left_s = deadline - time.monotonic()
            try:
                response = await self._send_once(method, path, body, timeout_s=left_s)
            except (httpx.TransportError, TimeoutError) as error:
                said = _what_happened(error)
                continue
            if response.is_success or (accepts_404 and response.status_code == httpx.codes.NOT_FOUND):
                return response
            said = f"status {response.status_code}: {error_sentence(response.content)}"
            if response.status_code not in _RETRIED_STATUSES:
                raise RolloutError(f"{self.address} refused {path} with {said}")
        raise RolloutError(
            f"{self.address} did not answer {path} within {timeout_s:g} s and {self._max_retries} retries ({said}); "
            "look at the server's log, or raise the timeout."
        )

    async def _send_once(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=min(self._connect_timeout_s, timeout_s))
        # httpx counts from byte to byte; this deadline is of the whole exchange.
        async with asyncio.timeout(timeout_s), self._lane() as lane:
            headers = self._headers if path in _OPEN_PATHS else self._admin_headers
            return await lane.request(method, f"{self.address}{path}", json=body, headers=headers, timeout=timeout)

    @contextlib.asynccontextmanager
    async def _lane(self) -> AsyncIterator[httpx.AsyncClient]:
        async with self._free_lanes:
            lane = self._idle_lanes.pop() if self._idle_lanes else self._open_lane()
            is_idle = False
            try:
                yield lane
                is_idle = True
            finally:
                if is_idle:
                    self._idle_lanes.append(lane)
                else:
                    await lane.aclose()  # its connection may be in the middle of an exchange

    def _open_lane(self) -> httpx.AsyncClient:
        # trust_env would send requests to a server on this machine through the proxy of the environment.
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        return httpx.AsyncClient(limits=limits, trust_env=False, verify=self._tls)


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _what_happened(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "it took too long"
    return str(error) or type(error).__name__


def _parsed(response: httpx.Response, server: str) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError as error:  # JSON, or its encoding
        raise RolloutError(f"{server} sent a reply to {response.request.url.path} that is no JSON.") from error
    if not isinstance(content, dict):
        raise RolloutError(f"{server} sent a reply to {response.request.url.path} that is no JSON object.")
    return content
