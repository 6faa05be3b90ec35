"""How rollout servers are started so that they have a custom weight loader."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOADER_FOLDER = Path(__file__).parents[1] / "weight_receiver"
"""Folder of the loader's module, which holds nothing that could hide a module of the server's own environment."""

_OPTION = "custom-weight-loader"


def with_loader(
    arguments: Mapping[str, Any], environment: Mapping[str, str], loader: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Add a custom weight loader to what a server is started with.

    Args:
        arguments: options of SGLang, without their dashes.
        environment: variables of the server in addition to those of this process.
        loader: module.function of the loader; None adds nothing.

    Returns:
        Options and variables: with the loader beside those that are there already, and its folder first on PYTHONPATH.
    """
    if loader is None:
        return dict(arguments), dict(environment)
    given = next((value for name, value in arguments.items() if name.replace("_", "-") == _OPTION), ())
    several = [given] if isinstance(given, str) else list(given if isinstance(given, Sequence) else ())
    others = {name: value for name, value in arguments.items() if name.replace("_", "-") != _OPTION}
    before = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    path = os.pathsep.join(filter(None, (str(LOADER_FOLDER), before)))
    return {**others, _OPTION: [*dict.fromkeys([*several, loader])]}, {**environment, "PYTHONPATH": path}
