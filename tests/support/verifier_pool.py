"""A pool of verifier processes in a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from megacov.rewards.call import Outcome
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings
from megacov.rewards.settings import VerifierSettings
from tests.support.command import still_there


@contextlib.contextmanager
def opened(
    verifiers: str | Sequence[VerifierSettings],
    folder: Path,
    *,
    num_workers: int = 1,
    timeout_s: float = 30.0,
    is_quiet: bool = False,
) -> Iterator[VerifierPool]:
    """A pool that has imported its verifier, or verifiers; afterwards no process of it may be left."""
    before = set(psutil.Process().children(recursive=True))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    wanted = (VerifierSettings(verifiers),) if isinstance(verifiers, str) else tuple(verifiers)
    settings = ProcessSettings(verifiers=wanted, log_path=folder / "verifier.log", environment=environment)
    pool = VerifierPool(settings, num_workers=num_workers, timeout_s=timeout_s, start_timeout_s=60.0)
    pool.start(is_quiet=is_quiet)
    try:
        pool.wait_for_first()
        yield pool
    finally:
        own = [each for each in psutil.Process().children(recursive=True) if each not in before]
        pool.close()
        assert still_there(own) == []


def judge(pool: VerifierPool, texts: Sequence[str]) -> list[Outcome]:
    """Outcomes of responses that are judged at the same time; ends the pool's work."""

    async def all_at_once() -> list[Outcome]:
        try:
            judged = await asyncio.gather(*(pool.judge({"text": text, "answer": "a"}) for text in texts))
        finally:
            await pool.aclose()
        return [each.outcome for each in judged]

    return asyncio.run(all_at_once())
