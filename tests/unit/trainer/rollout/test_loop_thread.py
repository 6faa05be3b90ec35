"""Coroutines beside the main thread: results and failures come back, and nothing runs after the end."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from megacov.trainer.rollout.loop_thread import LoopThread


def test_work_runs_beside_its_owner_and_returns() -> None:
    go_on = threading.Event()

    async def work() -> str:
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return threading.current_thread().name

    with LoopThread() as loop:
        begun = loop.start(work())
        assert not begun.done()
        go_on.set()
        assert begun.result(10) == "rollout"
    assert "rollout" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_an_error_is_raised_to_the_waiter(error: BaseException) -> None:
    async def work() -> None:
        raise error

    with LoopThread() as loop:
        with pytest.raises(type(error)):
            loop.run(work(), timeout_s=10)
        assert loop.run(asyncio.sleep(0, "still there"), timeout_s=10) == "still there"


def test_the_end_cancels_pending_work() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    loop = LoopThread()
    loop.start(work())
    loop.run(asyncio.sleep(0), timeout_s=10)
    loop.close()
    loop.close()
    assert ended == ["cleaned up"]


def test_blocked_work_does_not_delay_the_end_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[LoopThread.__module__], "_CLOSE_TIMEOUT_S", 0.05)
    unblock, blocked = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        unblock.wait()

    loop = LoopThread()
    loop.start(block())
    assert blocked.wait(10)
    loop.close()
    unblock.set()
