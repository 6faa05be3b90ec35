"""HTTP with one rollout server: every call ends within its deadline, with a reply or with one error."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
import ssl
import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from megacov.config.addresses import is_ip_address, refuse_public
from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import Capabilities
from megacov.rollout.client.reply import Reply
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
        self.request_timeout_s = request_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_retries = max_retries
        self._headers = _bearer(api_key)
        self._admin_headers = self._headers if admin_key is None else _bearer(admin_key)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None  # it belongs to the event loop of the first request

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
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        timeout_s: float,
        accepts_404: bool = False,
        is_repeatable: bool = True,
    ) -> Reply:
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
                reply = await self.send_once(method, path, body, timeout_s=left_s)
            except (aiohttp.ClientError, TimeoutError) as error:
                why = what_happened(error)
                # A late or overloaded server may still answer other requests.
                failure = UnreachableError if isinstance(error, aiohttp.ClientError) else RolloutError
                continue
            if reply.is_success or (accepts_404 and reply.is_not_found):
                return reply
            why = f"status {reply.status}: {error_sentence(reply.content)}"
            failure = BusyError if reply.status in _BUSY else RolloutError
            if reply.status not in _RETRIED_STATUSES:
                kind = RequestRefusedError if reply.status in _REFUSALS else RefusedError
                raise kind(f"{self.address} refused {path} with {why}")
        raise failure(
            f"{self.address} did not answer {path} within {timeout_s:g} s and {max_retries} retries ({why}); "
            "look at the server's log, or raise the timeout."
        )

    async def send_once(self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float) -> Reply:
        """Send a request once.

        Args:
            method: HTTP method.
            path: endpoint.
            body: JSON object, or None for an empty body.
            timeout_s: deadline of the whole exchange. [s]

        Returns:
            Any reply.

        Raises:
            ClientError: no reply (from aiohttp).
            TimeoutError: no reply in time.
            RolloutError: the server's host is public, and would be spoken to without TLS.
        """
        headers = self._headers if path in _OPEN_PATHS else self._admin_headers
        content = None
        if body is not None:
            headers = headers | {"Content-Type": "application/json"}
            # A stream, since aiohttp warns of bytes above 1 MiB.
            content = io.BytesIO(json.dumps(body, allow_nan=False, separators=(",", ":")).encode())
        if self._session is None:
            self._session = self._open_session()
        # aiohttp rounds its own deadlines above 5 s up to whole seconds.
        async with (
            asyncio.timeout(timeout_s),
            self._session.request(
                method, self.address + path, data=content, headers=headers, allow_redirects=False
            ) as response,
        ):
            return Reply(path, response.status, await response.read())

    def _open_session(self) -> aiohttp.ClientSession:
        host = urlsplit(self.address).hostname or ""
        if is_ip_address(host):
            _refuse_public(host, url=self.address)
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            keepalive_timeout=_KEEP_ALIVE_S,
            resolver=_PrivateResolver(self.address),
            ssl=ssl.create_default_context() if self.address.startswith("https:") else True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s),
        )


class _PrivateResolver(AbstractResolver):
    """Refuses public addresses of a host, at every look-up, since a name may come to mean another one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._resolver.resolve(host, port, family)
        except (OSError, UnicodeError) as error:
            raise OSError(f"{host} cannot be looked up: {error}") from error
        for each in found:
            _refuse_public(each["host"], url=self._url)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _refuse_public(host: str, *, url: str) -> None:
    try:
        refuse_public(host, url=url)
    except ValueError as error:
        raise RolloutError(str(error)) from error


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def what_happened(error: Exception) -> str:
    """Describe a lost or late exchange."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(error.os_error)  # its own text names the settings of TLS where there is none
    return str(error) or type(error).__name__
