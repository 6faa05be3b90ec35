"""All registered losses, with what the test module of each says about it: `tests/unit/losses/test_<name>.py`.

HYPERPARAMETERS         further settings for the suite that every loss must pass, beside its defaults
LAYOUT_HYPERPARAMETERS  settings under which three small updates differ from the plain policy gradient, if the defaults
                        do not show that
LAYOUT_SELECTION        settings of the loss's own selection in the layout suite, for a loss that has one
gradient                fn(batch, **hyperparameters) -> [t], d loss / d log_probs by the formula, without token_weights;
                        a loss whose value and gradient differ needs it
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from megacov.config.losses import LOSS_SECTIONS
from megacov.losses import LOSSES


def test_module_of(name: str) -> ModuleType:
    """The module that tests one loss."""
    return import_module(f"tests.unit.losses.test_{name}")


def defaults_of(name: str) -> dict[str, Any]:
    """Hyperparameters that a configuration has if it only names the loss."""
    return LOSS_SECTIONS[name](name=name).hyperparameters()


def suite_cases() -> list[tuple[str, dict[str, Any]]]:
    """Each loss with its defaults, then with the further settings of its test module."""
    return [
        (name, hyperparameters)
        for name in LOSSES
        for hyperparameters in (
            defaults_of(name) | further for further in ({}, *getattr(test_module_of(name), "HYPERPARAMETERS", []))
        )
    ]


def layout_hyperparameters_of(name: str) -> dict[str, Any]:
    """Hyperparameters of a loss in the layout suite."""
    return defaults_of(name) | getattr(test_module_of(name), "LAYOUT_HYPERPARAMETERS", {})


def layout_selection_of(name: str) -> dict[str, Any] | None:
    """Settings of the selection that belongs to a loss, in the layout suite; None if it has none of its own."""
    settings: dict[str, Any] | None = getattr(test_module_of(name), "LAYOUT_SELECTION", None)
    assert (settings is not None) == (LOSS_SECTIONS[name].own_selection is not None), name
    return settings


def gradient_of(name: str) -> Callable[..., Tensor]:
    """The hand-written gradient of a loss."""
    gradient: Callable[..., Tensor] = test_module_of(name).gradient
    return gradient
