"""What runs in the sandbox's processes: a response as a program, one of its functions, or tests that call them.

Tests never share a process with the response: names that they do not define are proxies, which ask the process of the
response by plain data. So a response that ends its process, replaces built-in functions or returns objects with an
equality of their own has no hold on the verdict.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from megacov.rewards.sandbox.plain import from_json, to_json

PASSED, FAILED = b"passed", b"failed"
_LONGEST_LINE = 1 << 24


def run_as_main(source: str) -> None:
    """Run a program to its end, as Python would; it reads and writes the standard streams."""
    namespace = vars(sys.modules["__main__"])
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]
    exec(compile(source, "<response>", "exec"), namespace)  # noqa: S102 - the sandbox is made for it
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


def define(source: str) -> dict[str, Any]:
    """Run a module, and return what it has defined."""
    namespace: dict[str, Any] = {"__name__": "response", "__builtins__": builtins}
    exec(compile(source, "<response>", "exec"), namespace)  # noqa: S102 - the sandbox is made for it
    return namespace


def find_function(namespace: dict[str, Any], name: str) -> Any:
    """A function of a module, or of its class Solution, as on sites that publish such problems."""
    if name in namespace:
        return namespace[name]
    if "Solution" in namespace:
        return getattr(namespace["Solution"](), name)
    raise NameError(f"name {name!r} is not defined")


def call_function(source: str, name: str, arguments: list[Any], result: int) -> None:
    """Call a function of a response, and write what it returns into a pipe as JSON.

    Args:
        source: text of the response's module.
        name: name of the function.
        arguments: its positional arguments.
        result: descriptor of the pipe.
    """
    value = find_function(define(source), name)(*arguments)
    with open(result, "w", encoding="utf-8") as file:
        json.dump(to_json(value), file)


def serve_functions(source: str, connection: socket.socket) -> None:
    """Answer calls of a response's functions until the tests end."""
    namespace = define(source)
    with connection.makefile("rw", encoding="utf-8") as file:
        while line := file.readline():
            name, arguments, keywords = from_json(json.loads(line))
            try:
                answer = {"value": to_json(find_function(namespace, name)(*arguments, **keywords))}
            except Exception as error:  # noqa: BLE001 - the response's own code raises it
                answer = {"error": type(error).__name__}
            file.write(json.dumps(answer) + "\n")
            file.flush()


def run_tests(statements: str, connection: socket.socket, result: int) -> None:
    """Run tests against the process that answers a connection, and write the verdict into a pipe.

    Args:
        statements: tests, as Python's statements.
        connection: socket to the process that runs `serve_functions`.
        result: descriptor of the pipe, which gets PASSED or FAILED.
    """
    with connection.makefile("rw", encoding="utf-8") as file:
        call = _Caller(file.write, file.flush, lambda: file.readline(_LONGEST_LINE))
        tree = ast.parse(statements)
        namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        namespace |= {name: call.proxy(name) for name in _unknown_names(tree)}
        try:
            exec(compile(tree, "<tests>", "exec"), namespace)  # noqa: S102 - the sandbox is made for it
        except Exception:  # noqa: BLE001 - also what a proxy or the tests themselves raise
            os.write(result, FAILED)
            return
    os.write(result, PASSED)


class _Caller:
    """Calls functions of another process."""

    def __init__(self, write: Callable[[str], Any], flush: Callable[[], Any], read: Callable[[], str]) -> None:
        self._write, self._flush, self._read = write, flush, read

    def proxy(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self._write(json.dumps(to_json([name, list(arguments), keywords])) + "\n")
            self._flush()
            answer = json.loads(self._read())
            if "error" in answer:
                found = getattr(builtins, str(answer["error"]), None)
                kind = found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError
                raise kind(f"{name} raised {answer['error']}")
            return from_json(answer["value"])

        return call


def _unknown_names(tree: ast.Module) -> set[str]:
    """Names that tests read and neither they nor Python define."""
    read, defined = set(), set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                defined |= {(each.asname or each.name).partition(".")[0] for each in names}
            case ast.ExceptHandler(name=str(name)):
                defined.add(name)
    return read - defined
