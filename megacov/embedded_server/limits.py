"""Bounds on what one client can ask of the server: the size and time of a request, and the keys that it needs."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_BODY_BYTES = 16 * 2**20  # a batch of a hundred prompts of 20,000 tokens
OPEN_TIME_S = 30.0  # for the head of a request, and again for its body
# A client that vanished without a word, as when its machine lost power, is noticed after two minutes.
_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}

_HEALTH = frozenset({"/health", "/health_generate", "/ping", "/ready"})
# The paths that SGLang's api-key opens; all others need the admin key, if there is one.
_SAMPLING = frozenset({"/generate", "/model_info", "/get_model_info", "/server_info", "/get_server_info"})

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that requests must carry: `api` for sampling, `admin` for weights and control. None asks for none."""

    api: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)

    def opens(self, path: str, header: bytes) -> bool:
        """Whether a request with this Authorization header may use the path. Anybody may ask whether it is healthy."""
        key = self.api if path in _SAMPLING else (self.admin or self.api)
        return path in _HEALTH or key is None or hmac.compare_digest(header, f"Bearer {key}".encode())


class BoundedRequests:
    """Passes requests on to an application once their bodies are whole, and refuses those beyond the bounds."""

    def __init__(self, app: Application, *, keys: Keys, max_body_bytes: int, open_time_s: float) -> None:
        """Wrap an application.

        Args:
            app: ASGI application.
            keys: keys that requests must carry.
            max_body_bytes: longest body. [bytes]
            open_time_s: time in which a body must arrive. [s]
        """
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._open_time_s = open_time_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._keys.opens(scope["path"], headers.get(b"authorization", b"")):
            await _refuse(send, 401, "Unauthorized: the server needs a key; send it as a bearer token.")
            return
        try:
            async with asyncio.timeout(self._open_time_s):
                body = await self._read(headers, receive)
        except TimeoutError:
            await _refuse(send, 408, f"The request took longer than {self._open_time_s:g} s to arrive.")
            return
        if body is None:
            await _refuse(send, 413, f"The body of a request may have at most {self._max_body_bytes} bytes.")
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None if it is too long. The body of a client that has gone is what arrived of it."""
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > self._max_body_bytes:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                return None
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(body)


async def _refuse(send: Send, status: int, message: str) -> None:
    """Answer and close the connection, on which the rest of the body may still arrive."""
    content = json.dumps({"error": {"message": message}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class BoundedConnection(H11Protocol):
    """A connection that is closed if the head of a request takes too long, or its client has vanished."""

    open_time_s = OPEN_TIME_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for the first request."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):  # not on macOS
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and wait for the rest of a head if they hold only a part of it."""
        super().data_received(data)
        if self._is_busy():
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """Wait for the rest of the next head, if a part of it has come already."""
        super().on_response_complete()
        if self._timer is None and not self._is_busy() and self.conn.trailing_data[0]:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self.open_time_s, self._close_if_idle)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_idle(self) -> None:
        self._timer = None
        if not self._is_busy() and not self.transport.is_closing():
            self.transport.close()
