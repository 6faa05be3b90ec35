"""Verifiers: functions from a response and the prompt's answer to the reward."""

from __future__ import annotations

from megacov.rewards.registry import Verifier, get_verifier

__all__ = ["Verifier", "get_verifier"]
