"""A verifier that looks at the answers of the data, and may fail in doing so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from megacov.errors import ConfigError, DataError


def judge(text: str, answer: str, *, unwanted: str = "") -> float:
    """Whether a response equals the answer."""
    return float(text == answer)


def check_answer(answer: str, unwanted: str = "") -> None:
    """Refuse one answer, and fail on others."""
    if answer == "hangs":
        time.sleep(1000)
    if answer == "dies":
        os._exit(3)
    if answer == "raises":
        raise KeyError("a")
    if answer == "slow":
        time.sleep(0.01)
    if unwanted and answer == unwanted:
        raise DataError(f"{answer} is unwanted.")


judge.check_answer = check_answer  # type: ignore[attr-defined]


def prepares(text: str, answer: str, finish_reason: str = "stop", *, word: str = "no") -> float:
    """A verifier in whose place another one judges."""
    return 0.0


def _check_arguments(word: str = "no") -> None:
    if not word:
        raise ConfigError("word is empty.")


def _prepare(word: str = "no") -> Callable[..., float]:
    def length_of_the_word(text: str, answer: str, *, num_tokens: int) -> float:
        return float(num_tokens if text == word else 0)

    return length_of_the_word


prepares.check_arguments = _check_arguments  # type: ignore[attr-defined]
prepares.prepare = _prepare  # type: ignore[attr-defined]
