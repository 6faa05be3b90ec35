"""Verdicts of a slow verifier: how long they take, and how long the event loop that awaits them stands still.

    python -m benchmarks.verifiers [--responses 2048] [--workers 8] [--replaced 8]

Each verdict takes 0.05 s, except those of a few responses whose verifier ends its process, which is then replaced.
Exits with 1 if the event loop stands still for 50 ms or longer, or a verdict is wrong.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated

import psutil
import typer

from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings

VERIFIER = "tests.support.verifiers:takes_its_time"
VERDICT_S = 0.05
_MAX_SILENCE_S = 0.05


async def longest_silence(stopped: asyncio.Event) -> float:
    """Longest time between two turns of the event loop until the event is set. [s]"""
    longest, last = 0.0, time.monotonic()
    while not stopped.is_set():
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        await asyncio.sleep(0.0005)
    return longest


async def judged(pool: VerifierPool, *, num_responses: int, num_replaced: int) -> tuple[float, float, int]:
    """Judge responses, all at the same time.

    Args:
        pool: pool that has been started.
        num_responses: responses.
        num_replaced: those of them on which the verifier ends its process.

    Returns:
        Seconds, the longest silence of the event loop in seconds, and the number of right verdicts.
    """
    stopped = asyncio.Event()
    silence = asyncio.create_task(longest_silence(stopped))
    every = num_responses // num_replaced if num_replaced else num_responses + 1
    texts = ["exit" if number % every == every - 1 else str(VERDICT_S) for number in range(num_responses)]
    since = time.monotonic()
    verdicts = await asyncio.gather(*(pool.judge({"text": text, "answer": "1.0"}) for text in texts))
    seconds = time.monotonic() - since
    stopped.set()
    right = sum(
        each.outcome.failure == "died" if text == "exit" else each.outcome.reward == 1.0
        for each, text in zip(verdicts, texts, strict=True)
    )
    longest = await silence
    await pool.aclose()
    return seconds, longest, right


def main(
    responses: Annotated[int, typer.Option(min=1, help="Responses, all judged at the same time.")] = 2048,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 8,
    replaced: Annotated[int, typer.Option(min=0, help="Responses on which the verifier ends its process.")] = 8,
) -> None:
    """Judge, and print times and memory."""
    pool = VerifierPool(ProcessSettings(name=VERIFIER), num_workers=workers, timeout_s=30.0, start_timeout_s=60.0)
    since = time.monotonic()
    pool.start()
    try:
        pool.wait_for_first()
        print(f"first process ready after {time.monotonic() - since:.2f} s")
        processes = psutil.Process().children(recursive=True)
        seconds, silence, right = asyncio.run(judged(pool, num_responses=responses, num_replaced=replaced))
        memory = [each.memory_full_info().uss for each in processes if each.is_running()]
    finally:
        pool.close()
    print(f"{responses} verdicts of {VERDICT_S:g} s by {workers} processes: {seconds:.2f} s")
    print(f"without any cost between verdicts: {responses * VERDICT_S / workers:.2f} s")
    print(f"longest silence of the event loop: {1000 * silence:.1f} ms")
    if memory:
        print(f"memory that is a process's own: at most {max(memory) / 2**20:.1f} MiB")
    sys.exit(silence >= _MAX_SILENCE_S or right != responses)


if __name__ == "__main__":
    typer.run(main)
