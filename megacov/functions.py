"""Functions that a user names in a setting, as package.module:function, and that are imported by that name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from megacov.errors import ConfigError


def split_function_name(name: str, *, setting: str) -> tuple[str, str]:
    """Split "package.module:function" into module and function; raises ConfigError if `name` has another form."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier() or module_name.startswith("."):
        raise ConfigError(f"{setting}: {name!r} does not have the form package.module:function.")
    return module_name, function_name


def import_function(name: str, *, setting: str) -> Any:
    """Import what a setting names.

    Args:
        name: "package.module:function".
        setting: the setting's path, for the message.

    Returns:
        Something that can be called.

    Raises:
        ConfigError: the name has another form, its module cannot be imported, or it leads to nothing callable.
    """
    module_name, function_name = split_function_name(name, setting=setting)
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        # Importing runs the module, which can fail in any way, end the process, and say so in many lines.
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        reason = " ".join(str(error).split())
        problem = reason if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {reason}"
        advice = "put its folder on PYTHONPATH or correct the name" if is_missing else "correct the module"
        raise ConfigError(f"{setting}: cannot import {module_name!r} of {name!r} ({problem}); {advice}.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "nothing of that name" if function is None else f"a {type(function).__name__}"
        raise ConfigError(f"{setting}: {name!r} should point to a function, but {module_name} holds {found}.")
    return function
