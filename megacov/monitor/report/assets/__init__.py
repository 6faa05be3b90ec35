"""Markup, style and program of the page of a report."""

from __future__ import annotations

from importlib.resources import files


def asset(name: str) -> str:
    """The text of a file of this folder."""
    return (files(__name__) / name).read_text(encoding="utf-8")
