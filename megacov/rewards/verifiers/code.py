"""Verifier of code: runs a response's program against tests, in a sandbox. docs/code_and_judges.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megacov.errors import ConfigError
from megacov.rewards.sandbox.confinement import Limits
from megacov.rewards.sandbox.plain import from_json, to_json
from megacov.rewards.sandbox.sandbox import Sandbox, SandboxSettings, check_sandbox
from megacov.rewards.verifiers.code_tests import (
    CodeTest,
    FunctionTest,
    ProgramTest,
    outputs_agree,
    parse_tests,
    values_agree,
)

_BLOCK = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.I
)
_MIB = 2**20
_OPEN_FILES = 64


def code(
    text: str,
    answer: str,
    *,
    row: Mapping[str, Any] | None = None,
    score: str = "all",
    tests_field: str | None = None,
    function_field: str = "entry_point",
    setup_field: str | None = None,
    max_tests: int | None = None,
    tolerance: float = 1e-6,
    time_s: float = 4.0,
    wall_s: float = 10.0,
    total_s: float = 25.0,
    memory_mib: int = 1024,
    folder_mib: int = 16,
    output_kib: int = 1024,
    processes: int = 16,
    packages: Sequence[str] = (),
) -> float:
    """Run the last ```python block of a response, or all of it if it has none, against tests.

    Args:
        text: response.
        answer: tests, in a form that `parse_tests` takes.
        row: row of the data.
        score: "all" for 1.0 if all tests pass and 0.0 otherwise, or "share" for the share of tests that pass.
        tests_field: field of the row that holds the tests, in place of the answer.
        function_field: field of the row that names the function, where tests do not.
        setup_field: field of the row with statements before each statement of the tests.
        max_tests: number of tests to run, the first ones; None for all.
        tolerance: largest difference of numbers that are no integers, absolute or relative.
        time_s: processor time of a process. [s]
        wall_s: time of a test by the clock. [s]
        total_s: time of all tests by the clock; those not run have not passed. [s]
        memory_mib: address space of a process, and memory of all processes of the response together. [MiB]
        folder_mib: size of the folder in memory that a program may write to. [MiB]
        output_kib: what a program may print. [KiB]
        processes: processes and threads at the same time.
        packages: folders of further modules that programs may import.

    Returns:
        The reward. A program that breaks a limit has not passed the test.

    Raises:
        DataError: the tests have no known form.
    """
    tests = _tests(answer, row or {}, tests_field, function_field, setup_field)[:max_tests]
    source = find_program(text)
    if not source.strip():
        return 0.0
    settings = _settings(time_s, wall_s, memory_mib, folder_mib, output_kib, processes, packages)
    passed = 0
    with Sandbox.start(source, settings, total_s=total_s) as sandbox:
        for test in tests:
            if _passes(sandbox, test, tolerance):
                passed += 1
            elif score == "all":
                return 0.0
    return passed / len(tests)


def _tests(
    answer: str, row: Mapping[str, Any], tests_field: str | None, function_field: str, setup_field: str | None
) -> list[CodeTest]:
    function, setup = (row.get(field) if field is not None else None for field in (function_field, setup_field))
    return parse_tests(
        answer if tests_field is None else row.get(tests_field),
        function=function if isinstance(function, str) else None,
        setup=setup if isinstance(setup, str) else "",
    )


def find_program(text: str) -> str:
    """The last ```python block of a response, or all of it if it has none."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1]) if blocks else text


def _passes(sandbox: Sandbox, test: CodeTest, tolerance: float) -> bool:
    """Whether a response passes a test. Expected outputs and values never enter the sandbox."""
    if isinstance(test, ProgramTest):
        status, output = sandbox.run({"kind": "main", "input": test.stdin})
        return status == "done" and outputs_agree(output, test.stdout, tolerance=tolerance)
    if isinstance(test, FunctionTest):
        arguments = to_json(test.arguments)
        status, output = sandbox.run({"kind": "call", "name": test.name, "arguments": arguments})
        try:
            value = from_json(json.loads(output)) if status == "done" else None
        except (ValueError, TypeError, RecursionError):  # the program wrote it, and may write anything
            return False
        return status == "done" and values_agree(value, test.value, tolerance=tolerance)
    status, output = sandbox.run({"kind": "statements"}, {"statements": test.statements})
    return status == "done" and output == "passed"


def _settings(
    time_s: float,
    wall_s: float,
    memory_mib: int,
    folder_mib: int,
    output_kib: int,
    processes: int,
    packages: Sequence[str],
) -> SandboxSettings:
    limits = Limits(
        cpu_s=time_s,
        memory_bytes=memory_mib * _MIB,
        file_bytes=folder_mib * _MIB,
        output_bytes=output_kib * 1024,
        processes=processes,
        open_files=_OPEN_FILES,
    )
    return SandboxSettings(limits=limits, memory_bytes=memory_mib * _MIB, wall_s=wall_s, packages=tuple(packages))


def check_arguments(score: str = "all", packages: Sequence[str] = (), **others: Any) -> None:
    """Raises ConfigError for an argument that cannot be used."""
    if score not in ("all", "share"):
        raise ConfigError(f"score is {score!r}; set it to all or share.")
    if not isinstance(packages, list | tuple) or not all(isinstance(each, str) for each in packages):
        raise ConfigError(f"packages is {packages!r}; set it to a list of folders.")
    for name, least in (("memory_mib", 64), ("folder_mib", 1), ("output_kib", 1), ("processes", 1), ("max_tests", 1)):
        value = others.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{name} is {value!r}; set it to a whole number from {least}.")
    for name in ("time_s", "wall_s", "total_s", "tolerance"):
        value = others.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value!r}; set it to a number from 0.")
        if value == 0 and name != "tolerance":
            raise ConfigError(f"{name} is 0; set it to a number of seconds above 0.")
    for name in ("tests_field", "function_field", "setup_field"):
        if not isinstance(others.get(name), str | None):
            raise ConfigError(f"{name} is {others[name]!r}; set it to the name of a field.")
    if others.get("processes", 16) > 40:
        raise ConfigError(f"processes is {others['processes']}; set it to 40 or less.")


def check_answer(
    answer: str,
    row: Mapping[str, Any] | None = None,
    tests_field: str | None = None,
    function_field: str = "entry_point",
    setup_field: str | None = None,
) -> None:
    """Raises DataError if an answer, or the field of the row that is named for it, holds no tests."""
    _tests(answer, row or {}, tests_field, function_field, setup_field)


def prepare(
    time_s: float = 4.0,
    wall_s: float = 10.0,
    memory_mib: int = 1024,
    folder_mib: int = 16,
    output_kib: int = 1024,
    processes: int = 16,
    packages: Sequence[str] = (),
) -> None:
    """Start making sandboxes; raises ConfigError if this machine does not allow it."""
    check_sandbox(_settings(time_s, wall_s, memory_mib, folder_mib, output_kib, processes, packages))


code.check_arguments = check_arguments  # type: ignore[attr-defined]
code.check_answer = check_answer  # type: ignore[attr-defined]
code.prepare = prepare  # type: ignore[attr-defined]
