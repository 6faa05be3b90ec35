"""Verifiers: functions of a response and the prompt's answer that return the reward."""

from __future__ import annotations

from megacov.rewards.registry import Verifier, get_verifier

__all__ = ["Verifier", "get_verifier"]
