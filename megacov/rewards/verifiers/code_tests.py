"""Tests of programs: the forms in which data sets write them, and whether an output is the expected one."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megacov.errors import DataError

_INTEGER = frozenset("+-0123456789")


@dataclass(frozen=True, slots=True)
class ProgramTest:
    """Text on standard input, and the text that the program must print."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class FunctionTest:
    """Arguments of a function, and the value that it must return."""

    name: str
    arguments: list[Any]
    value: Any


@dataclass(frozen=True, slots=True)
class StatementTest:
    """Statements of Python that must not raise."""

    statements: str


CodeTest = ProgramTest | FunctionTest | StatementTest


def parse_tests(content: Any, *, function: str | None = None, setup: str = "") -> list[CodeTest]:
    """Read tests in any of the known forms.

    Args:
        content: JSON, as text or parsed, or statements of Python. JSON is {"inputs": [...], "outputs": [...]}, with
            "fn_name" if a function is called (APPS, PRIME, Eurus, DAPO), a list of {"input": ..., "output": ...}
            (LiveCodeBench), or a list of statements (MBPP). Statements may define `check`, which is then called with
            the function (HumanEval).
        function: name of the function, where the tests do not name it.
        setup: statements before every statement of the tests.

    Returns:
        At least one test.

    Raises:
        DataError: it has another form, or no test.
    """
    parsed = _parsed(content)
    match parsed:
        case {"inputs": list(inputs), "outputs": list(outputs)}:
            if len(inputs) != len(outputs):
                raise DataError(
                    f"The tests have {len(inputs)} inputs and {len(outputs)} outputs; give as many of each."
                )
            name = parsed.get("fn_name") or None
            tests = [_test(given, wanted, name) for given, wanted in zip(inputs, outputs, strict=True)]
        case [{"input": _, "output": _}, *_]:
            tests = [_listed(each, function) for each in parsed]
        case [str(), *_] if all(isinstance(each, str) for each in parsed):
            tests = [_statements(each, function, setup) for each in parsed]
        case str():
            tests = [_statements(parsed, function, setup)]
        case _:
            raise DataError(
                'The tests must be {"inputs": [...], "outputs": [...]}, a list of {"input": ..., "output": ...}, or '
                f"statements of Python, got {str(content)[:80]!r}."
            )
    if not tests:
        raise DataError("The tests are an empty list; a response needs at least one.")
    return tests


def _parsed(content: Any) -> Any:
    if not isinstance(content, str):
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content


def _listed(item: Any, function: str | None) -> CodeTest:
    if not isinstance(item, Mapping) or not {"input", "output"} <= item.keys():
        raise DataError(f'Each test of the list needs "input" and "output", got {str(item)[:80]!r}.')
    name = item.get("fn_name") or (function if item.get("testtype") == "functional" else None)
    if item.get("testtype") == "functional" and name is None:
        raise DataError('A test of type "functional" names no function; set fn_name in it, or the argument function.')
    return _test(item["input"], item["output"], name)


def _test(given: Any, wanted: Any, name: str | None) -> CodeTest:
    if name is None:
        return ProgramTest(_text(given), _text(wanted))
    if isinstance(given, str):  # a line of JSON for each argument
        try:
            given = [json.loads(line) for line in given.splitlines() if line.strip()]
            wanted = json.loads(wanted) if isinstance(wanted, str) else wanted
        except ValueError as error:
            raise DataError(f"A test of {name} has arguments or a value that are no JSON: {given[:80]!r}.") from error
    if not isinstance(given, list):
        raise DataError(f"A test of {name} needs a list of arguments, got {str(given)[:80]!r}.")
    return FunctionTest(name, given, wanted)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return value if isinstance(value, str) else str(value)


def _statements(text: str, function: str | None, setup: str) -> StatementTest:
    try:
        tree = ast.parse(text)
        ast.parse(setup)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"The tests are neither JSON nor statements of Python: {text[:80]!r}.") from error
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in ast.walk(tree)):
        raise DataError(f"The tests assert nothing: {text[:80]!r}.")
    if _has_uncalled_check(tree):
        if function is None:
            raise DataError("The tests define check and do not call it; set the argument function to what it checks.")
        text = f"{text}\ncheck({function})"
    return StatementTest(f"{setup}\n{text}")


def _has_uncalled_check(tree: ast.Module) -> bool:
    if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        return False
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return not any(isinstance(call.func, ast.Name) and call.func.id == "check" for call in calls)


def outputs_agree(actual: str, wanted: str, *, tolerance: float) -> bool:
    """Whether a program printed what it must: the same lines, without blanks at their ends and empty lines at the end.

    Args:
        actual: what the program printed.
        wanted: what it must print.
        tolerance: largest difference of a number that is expected with a decimal point or an exponent, absolute or
            relative; lines with such numbers are compared word by word.

    Returns:
        Whether they agree.
    """
    found, expected = _lines(actual), _lines(wanted)
    if len(found) != len(expected):
        return False
    return all(a == b or _words_agree(a.split(), b.split(), tolerance) for a, b in zip(found, expected, strict=True))


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _words_agree(actual: Sequence[str], wanted: Sequence[str], tolerance: float) -> bool:
    if len(actual) != len(wanted):
        return False
    return all(a == b or _numbers_agree(a, b, tolerance) for a, b in zip(actual, wanted, strict=True))


def _numbers_agree(actual: str, wanted: str, tolerance: float) -> bool:
    if set(wanted) <= _INTEGER:
        return False
    try:
        return _close(float(actual), float(wanted), tolerance)
    except ValueError:
        return False


def _close(actual: float, wanted: float, tolerance: float) -> bool:
    return actual == wanted or math.isclose(actual, wanted, rel_tol=tolerance, abs_tol=tolerance)


def values_agree(actual: Any, wanted: Any, *, tolerance: float) -> bool:
    """Whether a function returned what it must.

    JSON has no tuples, so they equal lists; its keys are text, so keys are compared as text; and some data sets put the
    value into a list of its own.

    Args:
        actual: plain data that the function returned.
        wanted: value that it must return, from JSON.
        tolerance: largest difference of a number where one of the two is no integer, absolute or relative.

    Returns:
        Whether they agree.
    """
    if _equal(actual, wanted, tolerance):
        return True
    return isinstance(wanted, list) and len(wanted) == 1 and _equal(actual, wanted[0], tolerance)


def _equal(actual: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(actual, bool) or isinstance(wanted, bool):
        return actual is wanted
    if isinstance(actual, float | int) and isinstance(wanted, float | int):
        if isinstance(actual, int) and isinstance(wanted, int):
            return actual == wanted
        try:
            return _close(float(actual), float(wanted), tolerance)
        except OverflowError:  # an integer beyond floats
            return False
    if isinstance(actual, list | tuple) and isinstance(wanted, list):
        return len(actual) == len(wanted) and all(map(lambda a, b: _equal(a, b, tolerance), actual, wanted))
    if isinstance(actual, dict) and isinstance(wanted, dict):
        named = {str(key): value for key, value in actual.items()}
        return named.keys() == wanted.keys() and all(_equal(named[key], wanted[key], tolerance) for key in wanted)
    return type(actual) is type(wanted) and bool(actual == wanted)
