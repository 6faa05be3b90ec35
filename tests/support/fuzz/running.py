"""Gives mutated files to the readers of outside text: a value or a sentence, within bounds of time and memory."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, given, settings

from megacov.errors import MegacovError
from tests.support.fuzz.mutations import mutated
from tests.support.fuzz.parser import Parser
from tests.support.fuzz.parsers import PARSERS

CPU_S_PER_CASE = 5.0
BYTES = 2 * 2**30
LONGEST_SENTENCE = 2000


class TooSlowError(BaseException):
    """A case took longer than it may; not an Exception, so that no reader can take it for a refusal."""


@dataclass
class Outcome:
    """What the cases of a parser came to. slowest_s: CPU seconds of the slowest case, which is `slowest`."""

    parser: str
    cases: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    slowest: bytes = b""


@contextmanager
def bounded_memory(num_bytes: int) -> Iterator[None]:
    """Let this process grow by so many bytes; more is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def bounded_time(cpu_s: float) -> Iterator[None]:
    """Raise TooSlowError once this process has computed for so long; other processes on the machine do not count."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {cpu_s:g} CPU seconds")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def read_one(parser: Parser, folder: Path, content: bytes, outcome: Outcome) -> None:
    """Read one content; any error but a refusal passes through."""
    start = time.process_time()
    try:
        with bounded_time(CPU_S_PER_CASE):
            parser.read(folder, content)
    except (MegacovError, *parser.refusals) as error:
        outcome.refused += 1
        sentence = str(error)
        sentence.encode()  # it can be printed
        if isinstance(error, MegacovError):
            assert sentence.strip() and "\n" not in sentence and len(sentence) <= LONGEST_SENTENCE, repr(sentence)
    seconds = time.process_time() - start
    outcome.cases += 1
    if seconds > outcome.slowest_s:
        outcome.slowest_s, outcome.slowest = seconds, content


def fuzz(parser: Parser, folder: Path, *, cases: int) -> Outcome:
    """Read the valid files of a parser, and that many others that differ from them by a few mistakes."""
    folder.mkdir(parents=True, exist_ok=True)
    parser.prepare(folder)
    outcome = Outcome(parser.name)
    for seed in parser.seeds:
        read_one(parser, folder, seed, outcome)

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=os.environ.get("CI") == "true",
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(parser.seeds, parser.kind))
    def read(content: bytes) -> None:
        read_one(parser, folder, content, outcome)

    with bounded_memory(BYTES):
        read()
    return outcome


def cases_of(parser: Parser, total: int) -> int:
    """The share of a parser in all cases."""
    return max(1, round(total * parser.weight / sum(each.weight for each in PARSERS)))
