r"""The verifier of mathematics beside verl's: times, and each response on which the two disagree.

    MEGACOV_DATA=../shared/data .venv/bin/python -m benchmarks.math_verifier [--problems 250] [--responses 8]

Responses are made from solutions of MATH-500: half of each problem's are right, as they are or spelled in another
way, and half have a corrupted answer. verl's reward module, math_verify.py of the wheel of verl 0.9.1 on PyPI, runs in
its own way, in a pool of two processes; ours in a pool of two as well. They take turns, so that another load on the
machine slows all of them down. CPU time is that of the two processes. Exits with 1 if ours, with right answers read
once, is not three times faster in CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.verifiers import math as own
from megacov.rewards.verifiers.mathematics import expressions
from megacov.rewards.verifiers.mathematics.extraction import last_answers

VERL = "verl==0.9.1"
_MEMBER, _MODULE = "verl/utils/reward_score/math_verify.py", "verl_reward_of_math"
_PROCESSES, _TURN = 2, 100
_DATA = Path(os.environ.get("MEGACOV_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True, slots=True)
class Case:
    """A response. kind: "as it is", or how its answer was changed."""

    text: str
    answer: str
    kind: str


@dataclass(slots=True)
class Contender:
    """One of those that are compared. judge: from cases to verdicts; processes: whose CPU time counts."""

    name: str
    judge: Callable[[Sequence[Case]], list[float]]
    processes: Callable[[], list[psutil.Process]]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    verdicts: list[float] = field(default_factory=list)

    def take_turn(self, cases: Sequence[Case]) -> None:
        """Judge, and add up the time."""
        cpu, since = self._cpu(), time.monotonic()
        self.verdicts += self.judge(cases)
        self.seconds += time.monotonic() - since
        self.cpu_seconds += self._cpu() - cpu

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self.processes()]
        return sum(each.user + each.system for each in times)


def without_memory(text: str, answer: str) -> float:
    """Our verifier, reading the right answer anew for each response."""
    own._gold.cache_clear()
    expressions.parsed.cache_clear()
    return own.math(text, answer)


def _rounded(fraction: re.Match[str]) -> str:
    above, below = int(fraction[1]), int(fraction[2])
    return f"{above / below:.3f}" if 1000 * above % below else fraction[0]


RESPELLINGS: dict[str, Callable[[str], str]] = {
    "dfrac": lambda answer: answer.replace("\\frac", "\\dfrac"),
    "blanks": lambda answer: answer.replace(",", " ,\\, ").replace("+", " + "),
    "slash": lambda answer: re.sub(r"\\frac\{([\d ]+)\}\{([\d ]+)\}", r"\1/\2", answer),
    "name": lambda answer: answer if re.search(r"[=,<>]|\\le|\\text|[A-Z]$", answer) else f"x = {answer}",
    "no sizes": lambda answer: answer.replace("\\left", "").replace("\\right", ""),
}
CORRUPTIONS: dict[str, Callable[[str], str]] = {
    "digit": lambda answer: re.sub(r"\d", lambda digit: str((int(digit[0]) + 3) % 10), answer, count=1),
    "sign": lambda answer: answer[1:] if answer.startswith("-") else f"-{answer}",
    "fraction swapped": lambda answer: re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\\frac{\2}{\1}", answer, count=1),
    "term dropped": lambda answer: re.sub(r"\s*[+,]\s*[^+,()\[\]{}]+", "", answer, count=1),
    "order": lambda answer: re.sub(r"([^,()\[\]]+),([^,()\[\]]+)", r"\2,\1", answer, count=1),
    "brackets": lambda answer: answer.translate(str.maketrans("()[]", "[]()")),
    "braces": lambda answer: re.sub(r"^\((.*,.*)\)$", r"\\{\1\\}", answer),
    "rounded": lambda answer: re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", _rounded, answer),
    "false equation": lambda answer: re.sub(r"^\d$", r"1 + \g<0> = \g<0>", answer),
    "factor": lambda answer: f"2{answer}" if answer[:1].isdigit() else f"2 \\cdot {answer}",
}


def make_cases(rows: Sequence[dict[str, Any]], *, responses: int) -> list[Case]:
    """Make responses from solutions.

    Args:
        rows: problems, each with solution and answer.
        responses: number of responses for each, half of them with a corrupted answer.

    Returns:
        The responses of all problems, problem by problem.
    """
    cases = []
    for place, row in enumerate(rows):
        solution, answer = row["solution"], row["answer"]
        boxed = "\\boxed{" + last_answers(solution, fallback="none")[-1] + "}"
        spellings = [("as it is", answer), *((name, respelled(answer)) for name, respelled in RESPELLINGS.items())]
        changed = [(name, corrupt(answer)) for name, corrupt in CORRUPTIONS.items()]
        wrong = [each for each in changed if each[1] != answer]
        half = responses // 2
        chosen = [spellings[(place + i) % len(spellings)] for i in range(responses - half)]
        chosen += [wrong[(place + i) % len(wrong)] for i in range(half)]
        cases += [Case(solution.replace(boxed, f"\\boxed{{{text}}}"), answer, kind) for kind, text in chosen]
    return cases


@contextlib.contextmanager
def verl(folder: Path) -> Iterator[Contender]:
    """verl's reward module, from the wheel that pip downloads into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), VERL]
    subprocess.run(command, check=True, timeout=300)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        # Under another name, since the package that it imports is called math_verify too.
        (folder / f"{_MODULE}.py").write_bytes(wheel.read(_MEMBER))
    sys.path.insert(0, str(folder))
    module = importlib.import_module(_MODULE)
    before = set(psutil.Process().children(recursive=True))
    with ProcessPoolExecutor(_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        module._pool = pool
        with ThreadPoolExecutor(_PROCESSES) as threads:

            def judge(cases: Sequence[Case]) -> list[float]:
                return list(threads.map(lambda case: float(module.compute_score(case.text, case.answer)), cases))

            judge([Case("\\boxed{x+1}", "1+x", "")] * 16)
            processes = [each for each in psutil.Process().children(recursive=True) if each not in before]
            yield Contender("verl 0.9.1", judge, lambda: processes)


@contextlib.contextmanager
def ours(name: str, verifier: str) -> Iterator[Contender]:
    """Our verifier in a pool of processes."""
    before = set(psutil.Process().children(recursive=True))
    settings = ProcessSettings(verifiers=(VerifierSettings(verifier),))
    pool = VerifierPool(settings, num_workers=_PROCESSES, timeout_s=30.0, start_timeout_s=60.0)
    pool.start()
    with asyncio.Runner() as runner:
        try:
            pool.wait_for_first()

            async def all_of(cases: Sequence[Case]) -> list[float]:
                judged = await asyncio.gather(
                    *(pool.judge({"text": case.text, "answer": case.answer}) for case in cases)
                )
                assert {each.outcome.failure for each in judged} == {None}
                return [each.outcome.reward for each in judged]

            def judge(cases: Sequence[Case]) -> list[float]:
                return runner.run(all_of(cases))

            judge([Case("\\boxed{x+1}", "1+x", "")] * 16)
            processes = [each for each in psutil.Process().children(recursive=True) if each not in before]
            yield Contender(name, judge, lambda: processes)
            runner.run(pool.aclose())
        finally:
            pool.close()


def main(
    problems: Annotated[int, typer.Option(min=1, max=500, help="Problems of MATH-500.")] = 250,
    responses: Annotated[int, typer.Option(min=2, help="Responses to each.")] = 8,
    differences: Annotated[Path | None, typer.Option(help="File for the responses on which the two disagree.")] = None,
) -> None:
    """Judge all responses in turns, and print times and differences."""
    lines = (_DATA / "math500" / "test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    cases = make_cases(rows[:: 500 // problems][:problems], responses=responses)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        contenders = [
            stack.enter_context(verl(Path(folder))),
            stack.enter_context(ours("megacov", "math")),
            stack.enter_context(ours("megacov, nothing remembered", "benchmarks.math_verifier:without_memory")),
        ]
        for begin in range(0, len(cases), _TURN):
            for contender in contenders:
                contender.take_turn(cases[begin : begin + _TURN])
    theirs, remembering, _ = contenders
    print(f"{len(cases)} responses to {problems} problems, {_PROCESSES} processes; load {os.getloadavg()[0]:.1f}")
    for each in contenders:
        per_case = 1000 * each.cpu_seconds / len(cases)
        ratios = f"{theirs.seconds / each.seconds:.1f} and {theirs.cpu_seconds / each.cpu_seconds:.1f} times as fast"
        print(
            f"{each.name:<28} {each.seconds:7.2f} s, CPU {each.cpu_seconds:7.2f} s ({per_case:.2f} ms each): {ratios}"
        )
    found = [
        {
            "gold": case.answer,
            "given": last_answers(case.text, fallback="none"),
            "kind": case.kind,
            "verl": a,
            "megacov": b,
        }
        for case, a, b in zip(cases, theirs.verdicts, remembering.verdicts, strict=True)
        if a != b
    ]
    print(f"{len(found)} verdicts differ")
    if differences is not None:
        differences.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found), encoding="utf-8")
    sys.exit(theirs.cpu_seconds < 3 * remembering.cpu_seconds)


if __name__ == "__main__":
    typer.run(main)
