"""HTTP with one rollout server: every call ends within its deadline, with a reply or with one error."""

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
from megacov.json_text import JsonError, parse_json
from megacov.rollout.client.capabilities import Capabilities
from megacov.rollout.client.wire import error_sentence

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_BUSY = frozenset({429, 503})
_REFUSALS = frozenset({400, 413, 422})  # the request itself is at fault; every server would refuse it
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 5.0
# SGLang closes connections that were idle for 5 s; a request sent at that moment is lost.
_KEEP_ALIVE_S = 2.0
# All other paths need the admin key, if there is one.
_OPEN_PATHS = frozenset({"/generate", "/health", "/model_info", "/get_model_info", "/server_info", "/get_server_info"})


class RefusedError(RolloutError):
    """The server refused, and would refuse again."""


class RequestRefusedError(RefusedError):
    """The server refused a request that every server would refuse."""


class BusyError(RolloutError):
    """The server was overloaded on every attempt."""


class UnreachableError(RolloutError):
    """No attempt reached the server."""


class Connection:
    """Sends requests to one server. Use it within one event loop.

    408, 429, 5xx and lost connections are retried, with exponential backoff and jitter.

    address: URL of the server.
    request_timeout_s: deadline of one call, retries included. [s]
    num_retries: requests sent again so far.
    capabilities: what the server can do; the newest contract until `RolloutClient.learn_capabilities` has asked.
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
        """Send nothing yet.

        Args:
            address: URL, such as http://127.0.0.1:30000.
            request_timeout_s: deadline of one call, retries included. [s]
            connect_timeout_s: deadline of one attempt to connect. [s]
            max_retries: further attempts after the first.
            max_connections: largest number of concurrent calls; further ones wait, within their deadline.
            api_key: bearer token of every request.
            admin_key: bearer token of weight updates and control, where the server has a separate one.
        """
        self.address = address.rstrip("/")
        self.capabilities = Capabilities()
        self.num_retries = 0
        self._urls: dict[str, httpx.URL] = {}  # by path: httpx parses a text anew for every request
        self.request_timeout_s = request_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_retries = max_retries
        self._headers = _bearer(api_key)
        self._admin_headers = self._headers if admin_key is None else _bearer(admin_key)
        # Each lane is a client with one connection: httpx takes time quadratic in the size of its connection pool.
        self._idle_lanes: list[httpx.AsyncClient] = []
        self._free_lanes = asyncio.Semaphore(max_connections)
        # Plain HTTP needs no certificates, and loading them takes longer than a whole call.
        is_secure = self.address.startswith("https:")
        self._tls = ssl.create_default_context() if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def __aenter__(self) -> Self:
        """Return the connection itself."""
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
        """Send a request, and retry it where that may help.

        Args:
            method: HTTP method.
            path: endpoint.
            body: JSON object, or None for an empty body.
            timeout_s: deadline of all attempts together. [s]
            accepts_404: whether to return a 404 instead of raising.
            is_repeatable: whether a request whose reply was lost may be sent again.

        Returns:
            A successful reply.

        Raises:
            RolloutError: the server refused, or did not answer in time.
        """
        max_retries = self._max_retries if is_repeatable else 0
        deadline = time.monotonic() + timeout_s
        why = "no time was left"
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
                why = what_happened(error)
                # A late or overloaded server may still answer other requests.
                failure = RolloutError if isinstance(error, TimeoutError | httpx.ReadTimeout) else UnreachableError
                continue
            if response.is_success or (accepts_404 and response.status_code == httpx.codes.NOT_FOUND):
                return response
            why = f"status {response.status_code}: {error_sentence(response.content)}"
            failure = BusyError if response.status_code in _BUSY else RolloutError
            if response.status_code not in _RETRIED_STATUSES:
                kind = RequestRefusedError if response.status_code in _REFUSALS else RefusedError
                raise kind(f"{self.address} refused {path} with {why}")
        raise failure(
            f"{self.address} did not answer {path} within {timeout_s:g} s and {max_retries} retries ({why}); "
            "look at the server's log, or raise the timeout."
        )

    async def send_once(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float
    ) -> httpx.Response:
        """Send a request once.

        Args:
            method: HTTP method.
            path: endpoint.
            body: JSON object, or None for an empty body.
            timeout_s: deadline of the whole exchange. [s]

        Returns:
            Any reply.

        Raises:
            RequestError: no reply (from httpx).
            TimeoutError: no reply in time.
        """
        timeout = httpx.Timeout(timeout_s, connect=min(self._connect_timeout_s, timeout_s))
        # httpx's timeout restarts with every byte; this deadline covers the whole exchange.
        async with asyncio.timeout(timeout_s), self._lane() as lane:
            headers = self._headers if path in _OPEN_PATHS else self._admin_headers
            if path not in self._urls:
                self._urls[path] = httpx.URL(f"{self.address}{path}")
            return await lane.request(method, self._urls[path], json=body, headers=headers, timeout=timeout)

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
                    await lane.aclose()  # it may hold a half-finished exchange

    async def _open_lane(self) -> httpx.AsyncClient:
        await self._look_up_host()
        # trust_env would send requests to local servers through the environment's proxy.
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
    """Describe a lost or late exchange."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "it took too long"
    return str(error) or type(error).__name__


def parsed(response: httpx.Response, server: str) -> dict[str, Any]:
    """Read the JSON object in a reply.

    Args:
        response: a successful reply.
        server: address, for the error message.

    Returns:
        The object.

    Raises:
        RolloutError: the reply holds no JSON object.
    """
    try:
        content = parse_json(response.content)
    except JsonError as error:
        raise RolloutError(f"{server} sent a reply to {response.request.url.path} that is no JSON.") from error
    if not isinstance(content, dict):
        raise RolloutError(f"{server} sent a reply to {response.request.url.path} that is no JSON object.")
    return content
