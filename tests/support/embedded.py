"""The embedded server inside the test process: the engine by itself, or the whole application without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from megacov.embedded_server.app import create_app
from megacov.embedded_server.engine import Engine
from megacov.embedded_server.generation import EngineRequest
from megacov.embedded_server.model import ServedModel, load_model
from megacov.embedded_server.sampling import SamplingParams
from megacov.embedded_server.service import Service
from megacov.embedded_server.thread import EngineThread


def make_engine(
    served: ServedModel, *, max_running_sequences: int = 512, random_seed: int = 0, deterministic: bool = False
) -> Engine:
    """An engine for the model."""
    return Engine(
        served.model,
        partial(served.tokenizer.decode, skip_special_tokens=False),
        model_path=served.folder,
        max_running_sequences=max_running_sequences,
        random_seed=random_seed,
        deterministic=deterministic,
    )


@dataclass
class EngineDriver:
    """Submits requests to an engine and steps it, on this thread."""

    engine: Engine
    done: list[EngineRequest] = field(default_factory=list)
    _rids: Iterator[int] = field(default_factory=itertools.count)

    def submit(
        self, prompt_ids: list[int], *, stop_ids: frozenset[int] = frozenset(), wants_input: bool = False, **params: Any
    ) -> EngineRequest:
        """Queue one request; the id is its number."""
        request = EngineRequest(
            rid=str(next(self._rids)),
            prompt_ids=prompt_ids,
            params=SamplingParams(**params),
            stop_ids=stop_ids,
            on_done=self.done.append,
            wants_log_probs=True,
            wants_input_log_probs=wants_input,
        )
        self.engine.submit(request)
        return request

    @torch.inference_mode()
    def step(self, number: int = 1) -> None:
        """Make at most `number` tokens for each request."""
        for _ in range(number):
            self.engine.step()

    @torch.inference_mode()
    def finish(self) -> None:
        """Step until nothing is left to do."""
        for _ in range(10_000):
            if not self.engine.has_work:
                return
            self.engine.step()
        raise AssertionError("the engine does not come to an end")


def num_tokens_of(engine: Engine, rid: str) -> int:
    """Tokens of a request so far, read from outside the engine's thread; 0 if the request is unknown."""
    request = engine._requests.get(rid)
    return 0 if request is None else min((len(one.output_ids) for one in request.generations), default=0)


@contextlib.asynccontextmanager
async def application(folder: Path, **engine_options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application that serves the model folder."""
    async with application_and_engine(folder, **engine_options) as (client, _):
        yield client


@contextlib.asynccontextmanager
async def application_and_engine(
    folder: Path, **engine_options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Engine]]:
    """A client of the application, and its engine for inspection."""
    served = load_model(folder, dtype="float32")
    engine = make_engine(served, **engine_options)
    loop, test = asyncio.get_running_loop(), asyncio.current_task()
    assert test is not None
    thread = EngineThread(engine, num_threads=1, on_death=lambda: loop.call_soon_threadsafe(test.cancel))
    app = create_app(Service(served, engine, thread), server_info={"device": "cpu"})
    thread.start()
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://embedded", timeout=30.0) as client:
            yield client, engine
    finally:
        assert thread.stop(10.0), "the engine died"
