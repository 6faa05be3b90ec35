"""Policy losses by name: each file of this folder that declares one under its own name, or any that can be imported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from megacov.errors import ConfigError
from megacov.losses.imported import import_loss
from megacov.losses.loss import Loss


def _find_losses() -> dict[str, Loss]:
    found = {}
    for info in iter_modules([str(Path(__file__).parent)]):
        module = import_module(f"megacov.losses.{info.name}")
        for loss in vars(module).values():
            if isinstance(loss, Loss) and loss.token_losses.__module__ == module.__name__:
                assert loss.name == info.name, f"{module.__name__} declares {loss.name}: name the file like the loss"
                found[loss.name] = loss
    return found


LOSSES = _find_losses()
"""megacov's own losses by name, in alphabetical order."""


def get_loss(name: str) -> Loss:
    """The loss of that name.

    Args:
        name: as in `algorithm.loss.name`: one of megacov's own, or "package.module:function".

    Returns:
        A loss, to be called as loss(batch, **hyperparameters).

    Raises:
        ConfigError: no loss has that name, or the name leads to no loss.
    """
    if ":" in name:
        return import_loss(name)
    if name not in LOSSES:
        raise ConfigError(
            f"Loss {name!r} is unknown: set algorithm.loss.name to one of {', '.join(LOSSES)}, or to "
            "package.module:function."
        )
    return LOSSES[name]
