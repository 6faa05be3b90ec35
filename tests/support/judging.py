"""Verifiers of samplers under test."""

from __future__ import annotations

from collections.abc import Callable

from megacov.rollout import Verifier
from megacov.types import Completion, Prompt, Verdict


def judged_by(reward: Callable[[str, str], float]) -> Verifier:
    """A verifier from a function of response text and answer."""

    async def verify(prompt: Prompt, completion: Completion) -> Verdict:
        return Verdict(reward(completion.text, prompt.answer))

    return verify
