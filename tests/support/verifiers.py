"""Verifiers as users write them, good and bad."""

from __future__ import annotations


def not_a_number(text: str, answer: str) -> float:
    return float("nan")


def huge(text: str, answer: str) -> float:
    return 1e300


def near_the_limit(text: str, answer: str) -> float:
    """Finite, as is the advantage that it makes; what a loss makes of that need not be."""
    return 3e38 if len(text) % 2 else 0.0


def length(text: str, answer: str) -> float:
    """A reward that always differs within a group."""
    return float(len(text))


def one(text: str, answer: str) -> float:
    """A reward that teaches nothing."""
    return 1.0
