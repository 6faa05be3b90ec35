"""Verifiers as users write them, good and bad."""

from __future__ import annotations


def not_a_number(text: str, answer: str) -> float:
    return float("nan")


def infinite(text: str, answer: str) -> float:
    return float("inf")


def huge(text: str, answer: str) -> float:
    return 1e300


def length(text: str, answer: str) -> float:
    """A reward that always differs within a group."""
    return float(len(text))


def one(text: str, answer: str) -> float:
    """A reward that teaches nothing."""
    return 1.0
