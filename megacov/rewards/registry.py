"""Verifiers by name: one of megacov's own, or any importable function.

A verifier is a function `fn(text, answer, ...) -> float`, or an async one. Megacov's own are functions in
`megacov/rewards/verifiers/`, whose keyword-only parameters with defaults are the verifier's arguments. Any verifier may
have these attributes, all of them functions that get those arguments that they have parameters for:

- `check_arguments(**arguments)`: raises ConfigError if an argument cannot be used. The sentence begins with the name of
  the argument; the path of the setting is put before it. It is quick and imports little.
- `check_answer(answer, **arguments)`: raises DataError if an answer of the data cannot be judged against. It may have a
  parameter `row`, which gets the prompt's whole row of the data if the verifier asks for that too.
- `prepare(**arguments)`: called once in each process before the first verdict, to import and load what takes time. If
  it returns a function, that one judges in place of the verifier: it gets text, answer and values by name, but no
  arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from megacov.errors import ConfigError
from megacov.functions import import_function

Verifier = Callable[..., Any]
"""fn(response text, the prompt's answer, further values by name) -> reward, or an awaitable of it."""

OWN = {
    name: f"megacov.rewards.verifiers.{place}"
    for name, place in {
        "code": "code:code",
        "exact": "text:exact",
        "gsm8k": "gsm8k:gsm8k",
        "judge": "judge:judge",
        "math": "math:math",
        "multiple_choice": "choice:multiple_choice",
        "normalized_text": "text:normalized_text",
        "numeric": "numeric:numeric",
        "reasoning_gym": "reasoning_gym:reasoning_gym",
        "regex": "regex:regex",
        "sum_pairs": "sum_pairs:sum_pairs",
        "weighted": "weighted:weighted",
    }.items()
}
"""Where each of megacov's own verifiers is, by its name."""

_EXTRAS = {"math_verify": "math", "reasoning_gym": "gym"}
"""Packages that only some verifiers need, and the extra of megacov that installs each."""


_LOAD_MORE = frozenset({"code", "judge", "math", "reasoning_gym", "weighted"})


class MissingPackageError(ConfigError):
    """A verifier of megacov's own needs a package that is not installed."""


def find_verifier(name: str, *, setting: str = "rewards.verifier") -> Verifier:
    """Find a verifier by its name; imports its module.

    Args:
        name: one of megacov's own ("gsm8k"), or "package.module:function".
        setting: path of the setting that holds the name, for messages.

    Returns:
        The function.

    Raises:
        MissingPackageError: a package that one of megacov's own needs is not installed.
        ConfigError: there is no such verifier, or it cannot be imported or called.
    """
    return import_function(name, setting=setting) if ":" in name else _own_verifier(name, setting)


def loads_more(name: str) -> bool:
    """Whether one of megacov's own verifiers loads more than its module before the first verdict."""
    return name in _LOAD_MORE


def missing_package(error: ModuleNotFoundError, name: str, *, setting: str) -> MissingPackageError:
    """The error for a package that one of megacov's own verifiers needs; raises `error` if it is not optional."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        raise error
    return MissingPackageError(
        f"{setting}: {name} needs the package {package.replace('_', '-')}, which is not installed: "
        f"pip install 'megacov[{_EXTRAS[package]}]'."
    )


def _own_verifier(name: str, setting: str) -> Verifier:
    if name not in OWN:
        known = ", ".join(sorted(OWN))
        raise ConfigError(f"{setting}: there is no verifier {name!r}; use one of {known}, or package.module:function.")
    module, _, function = OWN[name].partition(":")
    try:
        verifier: Verifier = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise missing_package(error, name, setting=setting) from error
    return verifier
