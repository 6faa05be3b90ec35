"""Runs the embedded server in this process until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from megacov.embedded_server.app import create_app
from megacov.embedded_server.engine import Engine
from megacov.embedded_server.limits import MAX_BODY_BYTES, OPEN_TIME_S, BoundedConnection, BoundedRequests, Keys
from megacov.embedded_server.model import ModelDtype, ServedModel, load_model
from megacov.embedded_server.service import Service
from megacov.embedded_server.startup import write_port_file
from megacov.embedded_server.thread import EngineThread
from megacov.errors import RolloutError
from megacov.launch.memory import keep_freed_memory, spare_collector

_GRACE_S = 1  # for replies that are being written when the server ends
_LAST_TOKEN_S = 5.0
_MORE_CONNECTIONS = 1024
_KEEP_ALIVE_S = 600  # longer than a training step, or the client's next request would meet a closing connection


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a server, named as in SGLang's /server_info."""

    dtype: ModelDtype
    max_running_requests: int
    random_seed: int
    num_threads: int
    enable_deterministic_inference: bool = False
    keys: Keys = field(default_factory=Keys)


def run_server(folder: Path, listener: socket.socket, settings: ServerSettings, *, port_file: Path | None) -> None:
    """Load the model, and serve until SIGTERM or SIGINT. Call it from the main thread.

    Args:
        folder: Hugging Face model folder.
        listener: a listening socket.
        settings: settings of the server.
        port_file: file for the port, written once requests are answered.

    Raises:
        DataError: the folder is unusable.
        RolloutError: the engine died.
    """
    served = load_model(folder, dtype=settings.dtype)
    spare_collector()
    keep_freed_memory()
    if not asyncio.run(_serve(served, listener, settings, port_file=port_file)):
        raise RolloutError("The engine of the embedded server died; its traceback is further up in this log.")


async def _serve(
    served: ServedModel, listener: socket.socket, settings: ServerSettings, *, port_file: Path | None
) -> bool:
    """Serve until a signal; returns False if the engine died instead."""
    loop = asyncio.get_running_loop()
    engine = Engine(
        served.model,
        partial(served.tokenizer.decode, skip_special_tokens=False),
        model_path=served.folder,
        max_running_sequences=settings.max_running_requests,
        random_seed=settings.random_seed,
        deterministic=settings.enable_deterministic_inference,
    )

    def on_death() -> None:
        loop.call_soon_threadsafe(server.stop)

    thread = EngineThread(engine, num_threads=settings.num_threads, on_death=on_death)
    host, port = listener.getsockname()[:2]
    app = BoundedRequests(
        create_app(Service(served, engine, thread), server_info=_server_info(served, settings, host, port)),
        keys=settings.keys,
        max_body_bytes=MAX_BODY_BYTES,
        open_time_s=OPEN_TIME_S,
    )

    def announce() -> None:
        if port_file is not None:
            write_port_file(port_file, port)
        print(f"Serving {served.folder} at http://{host}:{port}", flush=True)

    server = _Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            lifespan="off",
            http=BoundedConnection,
            ws="none",
            # More than a trainer opens, whose every request may run and is followed by control calls.
            limit_concurrency=2 * settings.max_running_requests + _MORE_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        ),
        announce,
    )

    def end() -> None:
        thread.post(partial(engine.abort, None))  # answer all clients, so that no open connection delays the end
        server.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    thread.start()
    await server.serve(sockets=[listener])
    return await asyncio.to_thread(thread.stop, _LAST_TOKEN_S)


def _server_info(served: ServedModel, settings: ServerSettings, host: str, port: int) -> dict[str, Any]:
    return {
        "dtype": str(served.model.dtype).removeprefix("torch."),
        "device": "cpu",
        "host": host,
        "port": port,
        "max_running_requests": settings.max_running_requests,
        "max_req_input_len": served.context_length - 1,
        "random_seed": settings.random_seed,
        "frontend": "megacov",
    }


class _Server(uvicorn.Server):
    """Leaves signals to its caller, and calls back once it is ready."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_started()

    def stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
