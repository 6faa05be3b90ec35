"""What one client can ask of the embedded server: a real connection is closed, a body refused, a key asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import uvicorn

from megacov.embedded_server.limits import BoundedConnection, BoundedRequests, Keys
from megacov.embedded_server.startup import listen, refuse_open_address
from megacov.errors import ConfigError
from tests.support.embedded import application
from tests.support.tiny_model import make_tiny_model


class QuickConnection(BoundedConnection):
    open_time_s = 0.2


async def echo(scope, receive, send) -> None:
    """Answers with the length of the body."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@contextlib.asynccontextmanager
async def serving(keys: Keys | None = None) -> AsyncIterator[int]:
    """The port of a server on a real socket that takes bodies of 1000 bytes, which must arrive within 0.2 s."""
    app = BoundedRequests(echo, keys=keys or Keys(), max_body_bytes=1000, open_time_s=0.2)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, http=QuickConnection, ws="none", lifespan="off", log_level="critical")
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send bytes, and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


def test_connections_and_bodies_are_bounded():
    async def test() -> dict[str, bytes]:
        async with asyncio.timeout(30), serving() as port:
            post = b"POST / HTTP/1.1\r\nHost: x\r\n"
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                largest = await client.post("/", content=b"a" * 1000)
                too_large = await client.post("/", content=b"a" * 1001)
            sent = {
                "nothing": (),
                "half a head": (post,),
                "no body": (post + b"Content-Length: 10\r\n\r\n",),
                "200 MB": (post + b"Content-Length: 200000000\r\n\r\n",),
                "endless": (post + b"Transfer-Encoding: chunked\r\n\r\n", *[b"3e8\r\n" + b"a" * 1000 + b"\r\n"] * 2),
                "a second half": (post + b"Content-Length: 1\r\n\r\na", post),
            }
            answers = await asyncio.gather(*(exchange(port, *parts) for parts in sent.values()))
            first = {"largest": str(largest.status_code).encode(), "too large": str(too_large.status_code).encode()}
            return first | dict(zip(sent, answers, strict=True))

    found = asyncio.run(test())
    assert found["largest"] == b"200" and found["too large"] == b"413"
    assert found["nothing"] == found["half a head"] == b""
    assert found["no body"].startswith(b"HTTP/1.1 408")
    assert found["200 MB"].startswith(b"HTTP/1.1 413") and found["endless"].startswith(b"HTTP/1.1 413")
    assert found["a second half"].count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(
    ("keys", "path", "sent", "status"),
    [
        (Keys("a"), "/generate", None, 401),
        (Keys("a"), "/generate", "wrong", 401),
        (Keys("a"), "/generate", "a", 200),
        (Keys("a"), "/update_weights_from_disk", "a", 200),
        (Keys("a", "b"), "/update_weights_from_disk", "a", 401),
        (Keys("a", "b"), "/update_weights_from_disk", "b", 200),
        (Keys("a", "b"), "/abort_request", "b", 200),
        (Keys("a", "b"), "/unknown", None, 401),
        (Keys("a", "b"), "/health", None, 200),
        (Keys(), "/update_weights_from_disk", None, 200),
    ],
)
def test_keys_open_what_sglangs_keys_open(keys, path, sent, status):
    async def test() -> int:
        app = BoundedRequests(echo, keys=keys, max_body_bytes=10, open_time_s=10.0)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
            return (await client.post(path, headers=headers)).status_code

    assert asyncio.run(test()) == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.1", "8.8.8.8"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(ConfigError, match=f"--host {host} can be reached from other machines"):
        refuse_open_address(host, has_key=False)
    refuse_open_address(host, has_key=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_needs_no_key(host):
    refuse_open_address(host, has_key=False)


SMALL = {"max_new_tokens": 2, "ignore_eos": True}
# Bodies of /generate, each of which must be a 400 and leave the server well.
REFUSED = {
    "a top_k of thirty digits": {"top_k": 10**30},
    "a top_k of three hundred digits": {"top_k": 10**299},
    "too many copies": {"n": 100_000},
    "a boolean for a number": {"n": True},
    "a fraction for a count": {"max_new_tokens": 1.5},
    "tokens beyond all bounds": {"max_new_tokens": 10**40},
    "tokens below zero": {"max_new_tokens": -1},
    "a temperature beyond floats": {"temperature": 10**299 * 10},
    "a seed of forty digits": {"sampling_seed": 10**40},
    "a stop token of forty digits": {"stop_token_ids": [10**40]},
    "a stop token below zero": {"stop_token_ids": [-1]},
    "too many stop texts": {"stop": ["a"] * 10_000},
    "too long a stop text": {"stop": "a" * 100_000},
}
# Whole texts of bodies, and their endpoints.
UNREADABLE = {
    "deep lists": ("/generate", '{"input_ids": ' + "[" * 200 + "]" * 200 + "}"),
    "NaN": ("/generate", '{"input_ids": [5], "sampling_params": {"temperature": NaN}}'),
    "infinity": ("/generate", '{"input_ids": [5], "sampling_params": {"top_p": -Infinity}}'),
    "a number of 5,000 digits": ("/generate", '{"input_ids": [5], "sampling_params": {"top_k": ' + "9" * 5000 + "}}"),
    "half of a surrogate pair": ("/generate", '{"text": "\\ud800"}'),
    "a token of forty digits": ("/generate", '{"input_ids": [' + "9" * 40 + "]}"),
    "mixed types": ("/generate", '{"input_ids": [5, "a", [6]]}'),
    "an odd version": ("/update_weight_version", '{"new_version": 5}'),
    "a folder with a NUL": ("/update_weights_from_disk", '{"model_path": "a\\u0000b"}'),
    "a name of a megabyte": ("/update_weights_from_disk", json.dumps({"model_path": "a" * 2**20})),
}


def _indexes(folder: Path) -> list[str]:
    """Folders of weights with indexes that no program has written."""
    maps: list[object] = [
        {"a": 5, "b": "model.safetensors"},
        {"a": None},
        {"a": ["x"], "b": {"c": 1}},
        {"a": "../model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": ""},
        {"a": ".."},
        {"a": "b\0c"},
        [1, 2],
        "text",
    ]
    for number, weight_map in enumerate(maps):
        (folder / str(number)).mkdir()
        text = json.dumps({"weight_map": weight_map})
        (folder / str(number) / "model.safetensors.index.json").write_text(text)
    (folder / "deep").mkdir()
    (folder / "deep" / "model.safetensors.index.json").write_text("[" * 500 + "]" * 500)
    return [str(path) for path in folder.iterdir()]


def _serve(folder: Path, test: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(120.0), application(folder) as client:
            await test(client)
            # The server is well: nothing above has ended its engine.
            reply = await client.post("/generate", json={"input_ids": [5], "sampling_params": SMALL})
            assert len(reply.json()["output_ids"]) == 2

    asyncio.run(run())


def test_no_request_ends_the_server(tmp_path):
    model = make_tiny_model(tmp_path / "model", seed=0)
    (tmp_path / "indexes").mkdir()

    async def test(client: httpx.AsyncClient) -> None:
        statuses = {}
        for name, params in REFUSED.items():
            body = {"input_ids": [5], "sampling_params": SMALL | params}
            statuses[name] = (await client.post("/generate", json=body)).status_code
        many = {"input_ids": [[5]] * 5000, "sampling_params": SMALL | {"n": 4}}
        statuses["too many completions"] = (await client.post("/generate", json=many)).status_code
        for name, (path, text) in UNREADABLE.items():
            reply = await client.post(path, content=text, headers={"content-type": "application/json"})
            statuses[name] = reply.status_code
            assert len(reply.content) < 20_000, name
        for path in _indexes(tmp_path / "indexes"):
            statuses[path] = (await client.post("/update_weights_from_disk", json={"model_path": path})).status_code
        assert set(statuses.values()) == {400}, statuses

    _serve(model, test)
