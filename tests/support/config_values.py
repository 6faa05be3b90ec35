"""Configurations as values, before they are checked."""

from __future__ import annotations

from typing import Any


def values(**sections: dict[str, Any]) -> dict[str, Any]:
    """Values of a small run, with other sections."""
    needed: dict[str, Any] = {
        "run": {"name": "x", "steps": 5},
        "model": {"path": "m"},
        "data": {"path": "d"},
        "rewards": {"verifier": "sum_pairs"},
    }
    return needed | sections


def algorithm(loss: str, **selection: Any) -> dict[str, Any]:
    """The section of a loss and a selection."""
    return {"loss": {"name": loss}, "selection": selection}
