"""A table at the end of the tests: the modules that computed longest, with all processes that they started.

The system counts a child's seconds once somebody has waited for it; those of processes that outlive their parents are
not counted. The fork server computes while it loads: that counts for the module that first needs it.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass

import pytest

from tests.support.forked import cpu_seconds

NUM_SHOWN = 10
_KEY = "seconds_by_module"
_CACHED = "megacov/seconds_by_module"  # a file of this name below .pytest_cache/v holds the whole table


@dataclass
class Seconds:
    """CPU seconds and wall-clock seconds."""

    cpu: float = 0.0
    wall: float = 0.0


def processor_seconds() -> float:
    """Seconds that this process, its children that have ended, and the fork server have computed."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used) + cpu_seconds()


class DearestModules:
    """Adds up seconds in each worker of pytest-xdist, and shows the sums where there is a terminal."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, Seconds] = defaultdict(Seconds)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure one test with its fixtures."""
        cpu, wall = processor_seconds(), time.monotonic()
        result = yield
        seconds = self._seconds[item.nodeid.partition("::")[0]]
        seconds.cpu += processor_seconds() - cpu
        seconds.wall += time.monotonic() - wall
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand the sums of a worker to the process that shows them."""
        if hasattr(session.config, "workeroutput"):
            rows = [(name, each.cpu, each.wall) for name, each in self._seconds.items()]
            session.config.workeroutput[_KEY] = rows

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Add the sums of a worker that has ended."""
        for name, cpu, wall in getattr(node, "workeroutput", {}).get(_KEY, []):
            self._seconds[name].cpu += cpu
            self._seconds[name].wall += wall

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table."""
        if not self._seconds:
            return
        rows = sorted(self._seconds.items(), key=lambda row: -row[1].cpu)
        cache = getattr(terminalreporter.config, "cache", None)  # missing with -p no:cacheprovider
        if cache is not None:
            cache.set(_CACHED, [(name, each.cpu, each.wall) for name, each in rows])
        total = sum(each.cpu for _, each in rows)
        shown = min(NUM_SHOWN, len(rows))
        terminalreporter.section(f"the {shown} dearest of {len(rows)} modules, {total:.0f} CPU seconds in all")
        terminalreporter.write_line(f"{'CPU s':>8}{'wall s':>8}  module")
        for name, each in rows[:NUM_SHOWN]:
            terminalreporter.write_line(f"{each.cpu:8.1f}{each.wall:8.1f}  {name}")
