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
from megacov.rewards.settings import VerifierSettings

VERIFIER = "tests.support.verifiers:takes_its_time"
VERDICT_S = 0.05
_MAX_SILENCE_S = 0.05
_TICK_S = 0.0005


async def longest_silence(stopped: asyncio.Event) -> tuple[float, float]:
    """Watch the event loop until the event is set.

    Args:
        stopped: end of the watch.

    Returns:
        How late a timer of the loop was at most, and the most CPU time of its thread until a timer, in seconds. On a
        busy machine the first is longer, since the thread waits for a core.
    """
    longest, most_work = 0.0, 0.0
    then, work = time.monotonic(), time.thread_time()
    while not stopped.is_set():
        await asyncio.sleep(_TICK_S)
        longest, most_work = max(longest, time.monotonic() - then - _TICK_S), max(most_work, time.thread_time() - work)
        then, work = time.monotonic(), time.thread_time()
    return longest, most_work


async def judged(
    pool: VerifierPool, *, num_responses: int, num_replaced: int
) -> tuple[float, tuple[float, float], int]:
    """Judge responses, all at the same time.

    Args:
        pool: pool that has been started.
        num_responses: responses.
        num_replaced: those of them on which the verifier ends its process.

    Returns:
        Seconds, `longest_silence`, and the number of right verdicts.
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
    pool = VerifierPool(
        ProcessSettings(verifiers=(VerifierSettings(VERIFIER),)),
        num_workers=workers,
        timeout_s=30.0,
        start_timeout_s=60.0,
    )
    since = time.monotonic()
    pool.start()
    try:
        pool.wait_for_first()
        print(f"first process ready after {time.monotonic() - since:.2f} s")
        processes = psutil.Process().children(recursive=True)
        seconds, (silence, work), right = asyncio.run(judged(pool, num_responses=responses, num_replaced=replaced))
        memory = [each.memory_full_info().uss for each in processes if each.is_running()]
    finally:
        pool.close()
    print(f"{responses} verdicts of {VERDICT_S:g} s by {workers} processes: {seconds:.2f} s")
    print(f"without any cost between verdicts: {responses * VERDICT_S / workers:.2f} s")
    print(f"longest silence of the event loop: {1000 * silence:.1f} ms, with {1000 * work:.1f} ms of work at most")
    if memory:
        print(f"memory that is a process's own: at most {max(memory) / 2**20:.1f} MiB")
    sys.exit(silence >= _MAX_SILENCE_S or right != responses)


if __name__ == "__main__":
    typer.run(main)
