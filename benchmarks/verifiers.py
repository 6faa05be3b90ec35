"""Verdicts of a slow verifier: how long they take, and how long the event loop that awaits them stands still.

    python -m benchmarks.verifiers [--responses 2048] [--workers 8] [--replaced 8]
    python -m benchmarks.verifiers --arrive-s 20 [--responses 2048] [--workers 8] [--asleep]

The first judges all responses at once. Each verdict takes 0.05 s, except those of a few responses whose verifier ends
its process, which is then replaced. It exits with 1 if the event loop stands still for 50 ms or longer, or a verdict is
wrong.

The second judges responses as servers finish them: their lengths are log-normal, and 4 % end together at the length
limit, last of all. A verdict takes CPU time, 11 ms in the mean and log-normal too, as for mathematics. It prints how
long after the last response the last verdict comes, which is what judging adds to a step, and exits with 1 if that
is 1 s or longer, or a verdict is wrong. With --asleep, verdicts sleep for that time, as if each process had a core of
its own.
"""

from __future__ import annotations

import asyncio
import random
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

BUSY_VERIFIER = "tests.support.verifiers:takes_cpu_time"
_MAX_ADDED_S = 1.0
_MEDIAN_VERDICT_S, _VERDICT_SIGMA = 0.008, 0.8
_MEDIAN_LENGTH, _LENGTH_SIGMA = 0.35, 0.6  # in shares of the length limit


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


async def judged_on_arrival(
    pool: VerifierPool, *, num_responses: int, arrive_s: float
) -> tuple[float, float, float, int]:
    """Judge responses as they arrive.

    Args:
        pool: pool that has been started.
        num_responses: responses.
        arrive_s: time until the last of them. [s]

    Returns:
        Seconds from the last response to the last verdict, the mean time that verdicts asked for, the mean time
        from a response to its verdict, and the number of right verdicts.
    """
    drawn = random.Random(0)
    lengths = [min(1.0, drawn.lognormvariate(0.0, _LENGTH_SIGMA) * _MEDIAN_LENGTH) for _ in range(num_responses)]
    costs = [drawn.lognormvariate(0.0, _VERDICT_SIGMA) * _MEDIAN_VERDICT_S for _ in range(num_responses)]
    began, longest = time.monotonic(), max(lengths)

    async def judge(length: float, cost: float) -> tuple[float, float, bool]:
        await asyncio.sleep(began + length / longest * arrive_s - time.monotonic())
        arrived = time.monotonic()
        judged = await pool.judge({"text": str(cost), "answer": "1.0"})
        return arrived, time.monotonic(), judged.outcome.reward == 1.0

    verdicts = await asyncio.gather(*map(judge, lengths, costs))
    await pool.aclose()
    arrived, ended, right = zip(*verdicts, strict=True)
    mean_s = (sum(ended) - sum(arrived)) / num_responses
    return max(ended) - max(arrived), sum(costs) / num_responses, mean_s, sum(right)


def _print_arrival(pool: VerifierPool, *, responses: int, workers: int, arrive_s: float) -> bool:
    """Judge on arrival and print the times; whether judging added little and was right."""
    added_s, cost_s, mean_s, right = asyncio.run(judged_on_arrival(pool, num_responses=responses, arrive_s=arrive_s))
    print(f"{responses} responses within {arrive_s:g} s, {1000 * cost_s:.1f} ms for each verdict, {workers} processes")
    print(f"all of it after the last response would take at least {responses * cost_s / workers:.2f} s")
    print(f"a verdict came {1000 * mean_s:.0f} ms after its response in the mean")
    print(f"the last verdict came {added_s:.2f} s after the last response")
    return added_s < _MAX_ADDED_S and right == responses


def main(
    responses: Annotated[int, typer.Option(min=1, help="Responses, all judged at the same time.")] = 2048,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 8,
    replaced: Annotated[int, typer.Option(min=0, help="Responses on which the verifier ends its process.")] = 8,
    arrive_s: Annotated[float | None, typer.Option(help="Time until the last response; none for all at once.")] = None,
    asleep: Annotated[bool, typer.Option(help="Verdicts sleep instead of computing, with --arrive-s.")] = False,
) -> None:
    """Judge, and print times and memory."""
    verifier = VERIFIER if arrive_s is None or asleep else BUSY_VERIFIER
    pool = VerifierPool(
        ProcessSettings(verifiers=(VerifierSettings(verifier),)),
        num_workers=workers,
        timeout_s=30.0,
        start_timeout_s=60.0,
    )
    since = time.monotonic()
    pool.start()
    try:
        pool.wait_for_first()
        print(f"first process ready after {time.monotonic() - since:.2f} s")
        if arrive_s is not None:
            sys.exit(not _print_arrival(pool, responses=responses, workers=workers, arrive_s=arrive_s))
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
