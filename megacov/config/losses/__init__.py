"""The hyperparameters of every policy loss: one file a loss, found by its place in this folder.

Adding a file is enough. `algorithm.loss`, its error messages and the editor schema follow from what is here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import get_args

from megacov.config.loss_section import LossSection


def _find_sections() -> dict[str, type[LossSection]]:
    found = {}
    for info in iter_modules([str(Path(__file__).parent)]):
        module = import_module(f"megacov.config.losses.{info.name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, LossSection) and value.__module__ == module.__name__
        ]
        names = [name for section in own for name in get_args(section.model_fields["name"].annotation)]
        assert names == [info.name], f"{module.__name__} must hold one LossSection, whose name is {info.name!r}"
        found[info.name] = own[0]
    return found


LOSS_SECTIONS = _find_sections()
"""Section of each loss by its name, in alphabetical order."""
