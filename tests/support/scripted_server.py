"""A real HTTP server on this machine; the test scripts each of its answers, valid or not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megacov.rollout.client.client import RolloutClient


@dataclass(frozen=True)
class Call:
    """One request that arrived."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """A reply with `content` as JSON, or as it is if it is bytes.

    `promised_bytes` lies about the length; then the connection is closed, or kept open for ever if `stalls`. With
    `trickle_s` the bytes come one by one, so many seconds apart.
    """

    content: Any = None
    status: int = 200
    promised_bytes: int | None = None
    stalls: bool = False
    trickle_s: float = 0.0
    headers: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The whole HTTP message."""
        body = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        length = len(body) if self.promised_bytes is None else self.promised_bytes
        fields = (f"HTTP/1.1 {self.status} Scripted", "content-type: application/json", f"content-length: {length}")
        return "\r\n".join((*fields, *self.headers, "", "")).encode() + body


DROP = Reply(b"", promised_bytes=-1)  # the connection is closed without an answer
Script = Callable[[Call], Awaitable[Reply]]


async def hang(_call: Call) -> Reply:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


def in_turn(*replies: Reply | Script) -> Script:
    """Answer the first request with the first reply, and so on; the last one is repeated."""
    queue = itertools.chain(replies, itertools.repeat(replies[-1]))

    async def script(call: Call) -> Reply:
        reply = next(queue)
        return reply if isinstance(reply, Reply) else await reply(call)

    return script


@contextlib.asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[tuple[str, list[Call]]]:
    """Run the server; gives its address and the calls that have arrived so far."""
    calls: list[Call] = []
    tasks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                call = await _read_call(reader)
                calls.append(call)
                reply = await script(call)
                if reply is DROP:
                    return
                encoded = reply.encode()
                for i in range(0, len(encoded), 1 if reply.trickle_s else len(encoded)):
                    writer.write(encoded[i : i + 1] if reply.trickle_s else encoded)
                    await writer.drain()
                    await asyncio.sleep(reply.trickle_s)
                if reply.stalls:
                    await hang(call)
                if reply.promised_bytes is not None:
                    return

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(talk(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", calls
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read_call(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(method, path, json.loads(content) if content else None, headers)


@contextlib.contextmanager
def scripted_clients(*scripts: Script, **options: Any) -> Iterator[tuple[list[RolloutClient], Callable[..., Any]]]:
    """Run servers; gives a client of each, and a function that runs the clients' coroutines."""

    async def start() -> list[RolloutClient]:
        opened = [await stack.enter_async_context(scripted_server(script)) for script in scripts]
        clients = [RolloutClient(address, **{"vocab_size": 4, "max_retries": 0} | options) for address, _ in opened]
        return [await stack.enter_async_context(client) for client in clients]

    stack = contextlib.AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            yield runner.run(start()), lambda coroutine: runner.run(asyncio.wait_for(coroutine, 30.0))
        finally:
            runner.run(stack.aclose())


def completion(
    token_ids: list[int],
    *,
    text: str = "",
    finish: str = "stop",
    version: str = "v0",
    log_probs: list[float | None] | None = None,
    **meta: Any,
) -> dict[str, Any]:
    """One completion as SGLang would send it, unless the arguments say otherwise."""
    values = [-1.0] * len(token_ids) if log_probs is None else log_probs
    return {
        "text": text,
        "output_ids": token_ids,
        "meta_info": {
            "id": "x",
            "finish_reason": {"type": finish},
            "weight_version": version,
            "weight_versions": [{"version": version, "start": 0, "end": len(token_ids)}],
            "output_token_logprobs": [[value, token, None] for value, token in zip(values, token_ids, strict=False)],
            **meta,
        },
    }
