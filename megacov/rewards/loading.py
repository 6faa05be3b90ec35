"""Imports verifiers, and looks whether the arguments in the settings fit them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from megacov.errors import ConfigError
from megacov.rewards.registry import MissingPackageError, Verifier, find_verifier, missing_package
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.signature import Wanted, wanted_values


@dataclass(frozen=True, slots=True)
class LoadedVerifier:
    """A verifier whose arguments have been checked.

    function: the verifier, with its attributes.
    judges: function to call for a response: the verifier, or what its `prepare` returned.
    wanted: values that `judges` is called with.
    arguments: arguments that `judges` is called with.
    """

    settings: VerifierSettings
    function: Verifier
    judges: Verifier
    wanted: Wanted
    arguments: Mapping[str, Any]

    @property
    def checks_answers(self) -> bool:
        """Whether the verifier looks at the answers of the data."""
        return getattr(self.function, "check_answer", None) is not None

    def check_answer(self, answer: str, row: Mapping[str, Any] | None = None) -> None:
        """Raises DataError if the verifier looks at answers, and cannot judge against this one of a row of the data."""
        if not self.checks_answers:
            return
        check = self.function.check_answer  # type: ignore[attr-defined]
        values = {"row": row} if "row" in inspect.signature(check).parameters else {}
        call_attribute(check, {**self.settings.arguments, **values}, answer)

    def prepared(self) -> LoadedVerifier:
        """Load what the verifier loads once in a process.

        Returns:
            The same verifier, ready to judge.

        Raises:
            ConfigError: something that it needs is missing or does not fit.
        """
        settings, prepare = self.settings, getattr(self.function, "prepare", None)
        if prepare is None:
            return self
        with _explained(settings):
            judges = call_attribute(prepare, settings.arguments)
        if judges is None:
            return self
        wanted = wanted_values(judges, settings.name, setting=settings.setting)
        return replace(self, judges=judges, wanted=wanted, arguments={})


def load_verifier(settings: VerifierSettings) -> LoadedVerifier:
    """Import a verifier and check its arguments; `LoadedVerifier.prepared` then makes it ready.

    Args:
        settings: its name and arguments.

    Returns:
        The verifier.

    Raises:
        MissingPackageError: a package that one of megacov's own needs is not installed.
        ConfigError: it cannot be imported or called, or its arguments do not fit.
    """
    function = find_verifier(settings.name, setting=settings.setting)
    wanted = wanted_values(
        function,
        settings.name,
        arguments=tuple(settings.arguments),
        setting=settings.setting,
        arguments_setting=settings.arguments_setting,
    )
    check = getattr(function, "check_arguments", None)
    if check is not None:
        with _explained(settings):
            call_attribute(check, settings.arguments)
    return LoadedVerifier(settings, function, function, wanted, settings.arguments)


@contextmanager
def _explained(settings: VerifierSettings) -> Iterator[None]:
    """Put the path of the arguments before what a verifier finds in them, and name a package that is missing."""
    try:
        yield
    except MissingPackageError:
        raise
    except ConfigError as error:
        raise ConfigError(f"{settings.arguments_setting}: {error}") from error
    except ModuleNotFoundError as error:
        if ":" in settings.name:
            raise
        raise missing_package(error, settings.name, setting=settings.setting) from error


def call_attribute(function: Callable[..., Any], arguments: Mapping[str, Any], *values: Any) -> Any:
    """Call an attribute of a verifier.

    Args:
        function: the attribute.
        arguments: the verifier's arguments; those that the attribute has no parameter for are left out.
        *values: positional arguments before them.

    Returns:
        What it returns.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return function(*values, **arguments)
    names = {each.name for each in parameters}
    return function(*values, **{name: value for name, value in arguments.items() if name in names})
