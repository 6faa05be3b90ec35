"""Several coroutines at once; the first failure cancels the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

Result = TypeVar("Result")


async def gather_all(coroutines: Iterable[Coroutine[None, None, Result]]) -> list[Result]:
    """Run coroutines at once, and return their results in order.

    The first failure cancels the others and is raised, outside any exception group.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in running]
