"""Verifier by a regular expression of Python's `re`, which the arguments or the answers hold."""

from __future__ import annotations

import re

from megacov.errors import ConfigError, DataError

_MODES = ("search", "fullmatch")
_ANSWER = "{answer}"


def regex(text: str, answer: str, *, pattern: str = "", mode: str = "search", ignore_case: bool = False) -> float:
    """Judge whether a response matches a pattern, in which `.` also matches the ends of lines.

    A pattern that backtracks without end is cut off by rewards.timeout_s, as a failure; its process is replaced.

    Args:
        text: response.
        answer: the pattern, if `pattern` is empty; otherwise text that stands in the pattern at {answer}, escaped.
        pattern: pattern for all prompts; empty if each prompt's answer is one.
        mode: "search" for a match anywhere, "fullmatch" for one of the whole response without blanks around it.
        ignore_case: whether upper and lower case are equal.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: `answer` is no pattern.
    """
    compiled = _compiled(answer, pattern, ignore_case)
    match = compiled.search(text) if mode == "search" else compiled.fullmatch(text.strip())
    return float(match is not None)


def check_arguments(pattern: str = "", mode: str = "search", ignore_case: bool = False) -> None:
    """Raises ConfigError for a pattern that cannot be compiled, and for another mode."""
    if mode not in _MODES:
        raise ConfigError(f"mode is {mode!r}; set it to {' or '.join(_MODES)}.")
    if not isinstance(ignore_case, bool):
        raise ConfigError(f"ignore_case is {ignore_case!r}; set it to true or false.")
    try:
        re.compile(pattern.replace(_ANSWER, "x"))
    except (re.error, AttributeError) as error:
        raise ConfigError(f"pattern is {pattern!r}, which is no regular expression ({error}).") from error


def check_answer(answer: str, pattern: str = "", mode: str = "search", ignore_case: bool = False) -> None:
    """Raises DataError if the pattern cannot be compiled, or matches an empty response."""
    if regex("", answer, pattern=pattern, mode=mode, ignore_case=ignore_case):
        raise DataError(f"regex would accept an empty response with the answer {answer[:80]!r}.")


def _compiled(answer: str, pattern: str, ignore_case: bool) -> re.Pattern[str]:
    whole = pattern.replace(_ANSWER, re.escape(answer)) if pattern else answer
    try:
        return re.compile(whole, re.DOTALL | (re.IGNORECASE if ignore_case else 0))  # the module keeps the last ones
    except re.error as error:
        raise DataError(
            f"regex needs a regular expression as the answer of a prompt, got {answer[:80]!r} ({error})."
        ) from error


regex.check_arguments = check_arguments  # type: ignore[attr-defined]
regex.check_answer = check_answer  # type: ignore[attr-defined]
