"""HTTP with a rollout server: every call ends within its deadline, with a reply or with one error."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from megacov.config.addresses import is_ip_address, refuse_public
from megacov.errors import RolloutError
from megacov.rollout.client.wire import error_sentence

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_BUSY = frozenset({429, 503})
_REFUSALS = frozenset({400, 413, 422})  # of what was sent; another server would say the same
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0
# SGLang closes a connection that is idle for 5 s, and a request that meets the close is lost.
_KEEP_ALIVE_S = 2.0
# Everything else wants the administrator's key, if there is one.
_OPEN_PATHS = frozenset({"/generate", "/health", "/model_info", "/get_model_info", "/server_info", "/get_server_info"})


class RefusedError(RolloutError):
    """The server refused, and would again."""


class RequestRefusedError(RefusedError):
    """The server refused a request, as another one would."""


class BusyError(RolloutError):
    """The server has too much to do, however often it was asked."""


class UnreachableError(RolloutError):
    """The server could not be talked to, however often that was tried."""


class Connection:
    """Sends requests to one server, within one event loop.

    408, 429, 5xx and lost connections are tried again, with exponential backoff and jitter.
    """

    def __init__(
        self,
        address: str,
        *,
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
            request_timeout_s: deadline of one call, retries included.
            connect_timeout_s: deadline of one attempt to connect.
            max_retries: further attempts after the first.
            max_connections: calls under way at a time; more wait, within their deadline.
            api_key: sent as a bearer token, if the server wants one.
            admin_key: sent instead with weights and control, if the server wants another one for these.
        """
        self.address = address.rstrip("/")
        self.num_retries = 0
        self.request_timeout_s = request_timeout_s
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

    async def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        timeout_s: float,
        accepts_404: bool = False,
        is_repeatable: bool = True,
    ) -> httpx.Response:
        """Exchange, again where that may help.

        Args:
            method: of HTTP.
            path: of the endpoint.
            body: sent as JSON; None sends none.
            timeout_s: deadline of all attempts together.
            accepts_404: let the caller have a reply that there is no such endpoint.
            is_repeatable: whether a request whose reply was lost may be sent again.

        Returns:
            A reply of success.

        Raises:
            RolloutError: the server refused, or did not answer in time.
        """
        max_retries = self._max_retries if is_repeatable else 0
        deadline = time.monotonic() + timeout_s
        said = "no time was left"
        failure: type[RolloutError] = RolloutError
        for attempt in range(max_retries + 1):
            if attempt:
                backoff_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                if time.monotonic() + backoff_s >= deadline:
                    break
                self.num_retries += 1
                await asyncio.sleep(backoff_s)
            left_s = deadline - time.monotonic()
            try:
                response = await self.send_once(method, path, body, timeout_s=left_s)
            except (httpx.RequestError, TimeoutError) as error:
                said = what_happened(error)
                # One that is late, or has too much to do, may yet answer others.
                failure = RolloutError if isinstance(error, TimeoutError | httpx.ReadTimeout) else UnreachableError
                continue
            if response.is_success or (accepts_404 and response.status_code == httpx.codes.NOT_FOUND):
                return response
            said = f"status {response.status_code}: {error_sentence(response.content)}"
            failure = BusyError if response.status_code in _BUSY else RolloutError
            if response.status_code not in _RETRIED_STATUSES:
                kind = RequestRefusedError if response.status_code in _REFUSALS else RefusedError
                raise kind(f"{self.address} refused {path} with {said}")
        raise failure(
            f"{self.address} did not answer {path} within {timeout_s:g} s and {max_retries} retries ({said}); "
            "look at the server's log, or raise the timeout."
        )

    async def send_once(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float
    ) -> httpx.Response:
        """Exchange once.

        Args:
            method: of HTTP.
            path: of the endpoint.
            body: sent as JSON; None sends none.
            timeout_s: deadline of the whole exchange.

        Returns:
            Any reply.

        Raises:
            RequestError: no reply; from httpx.
            TimeoutError: none in time.
        """
        timeout = httpx.Timeout(timeout_s, connect=min(self._connect_timeout_s, timeout_s))
        # httpx counts from byte to byte; this deadline is of the whole exchange.
        async with asyncio.timeout(timeout_s), self._lane() as lane:
            headers = self._headers if path in _OPEN_PATHS else self._admin_headers
            return await lane.request(method, f"{self.address}{path}", json=body, headers=headers, timeout=timeout)

    @contextlib.asynccontextmanager
    async def _lane(self) -> AsyncIterator[httpx.AsyncClient]:
        async with self._free_lanes:
            lane = self._idle_lanes.pop() if self._idle_lanes else await self._open_lane()
            is_idle = False
            try:
                yield lane
                is_idle = True
            finally:
                if is_idle:
                    self._idle_lanes.append(lane)
                else:
                    await lane.aclose()  # its connection may be in the middle of an exchange

    async def _open_lane(self) -> httpx.AsyncClient:
        await self._look_up_host()
        # trust_env would send requests to a server on this machine through the proxy of the environment.
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_S)
        return httpx.AsyncClient(limits=limits, trust_env=False, verify=self._tls)

    async def _look_up_host(self) -> None:
        if self.address.startswith("https:"):
            return
        host = urlsplit(self.address).hostname or ""
        if is_ip_address(host):
            found = [host]
        else:
            try:
                infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                raise httpx.ConnectError(f"{host} cannot be looked up: {error}") from error
            found = [str(info[4][0]) for info in infos]
        try:
            for each in found:
                refuse_public(each, url=self.address)
        except ValueError as error:
            raise RolloutError(str(error)) from error


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def what_happened(error: Exception) -> str:
    """A lost or late exchange in words."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "it took too long"
    return str(error) or type(error).__name__


def parsed(response: httpx.Response, server: str) -> dict[str, Any]:
    """The JSON object in a reply.

    Args:
        response: of the server.
        server: its address.

    Returns:
        The object.

    Raises:
        RolloutError: if there is none.
    """
    try:
        content = response.json()
    except ValueError as error:  # JSON, or its encoding
        raise RolloutError(f"{server} sent a reply to {response.request.url.path} that is no JSON.") from error
    if not isinstance(content, dict):
        raise RolloutError(f"{server} sent a reply to {response.request.url.path} that is no JSON object.")
    return content
