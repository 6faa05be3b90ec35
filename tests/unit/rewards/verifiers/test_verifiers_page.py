"""docs/verifiers.md lists every verifier of megacov's own, with the arguments that its signature has."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest

from megacov.rewards.registry import OWN, find_verifier
from megacov.rewards.signature import BY_NAME

PAGE = Path(__file__).parents[4] / "docs" / "verifiers.md"
ELSEWHERE = ("code", "judge")  # pages of their own have their arguments
HERE = [name for name in sorted(OWN) if find_spec(OWN[name].partition(":")[0]) is not None]


def rows() -> dict[str, str]:
    """The column of arguments, by the verifier's name."""
    table = PAGE.read_text(encoding="utf-8").split("## Megacov's own")[1].split("\nThe rules")[0]
    cells = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {name.strip(" `"): arguments for name, _, arguments, _ in cells}


def _as_yaml(value: object) -> str:
    if value == "":
        return '""'
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_verifier_has_a_row() -> None:
    assert list(rows()) == sorted(OWN)


@pytest.mark.parametrize("name", [name for name in HERE if name not in ELSEWHERE])
def test_arguments_and_defaults_are_those_of_the_signature(name: str) -> None:
    parameters = inspect.signature(find_verifier(name)).parameters.values()
    arguments = [each for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in BY_NAME]
    wanted = [
        f"`{each.name}`, required" if each.default is each.empty else f"`{each.name}: {_as_yaml(each.default)}`"
        for each in arguments
    ]
    assert rows()[name] == (", ".join(wanted) or "none")


@pytest.mark.parametrize("name", HERE)
def test_attributes_know_the_arguments_and_their_defaults(name: str) -> None:
    """A default that differed would check something else than what judges."""
    verifier = find_verifier(name)
    arguments = inspect.signature(verifier).parameters
    for attribute in ("check_arguments", "check_answer", "prepare"):
        function = getattr(verifier, attribute, None)
        for each in inspect.signature(function).parameters.values() if function is not None else ():
            if each.name not in ("answer", "row") and each.kind is not each.VAR_KEYWORD:
                wanted = arguments[each.name].default
                assert wanted in (each.default, each.empty), (attribute, each.name)
