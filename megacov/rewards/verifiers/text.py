"""Verifiers that compare texts: exactly, or after dropping what does not matter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from megacov.errors import ConfigError, DataError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)


def exact(text: str, answer: str, *, after: str = "", strip: bool = True) -> float:
    """Judge whether a response is the answer, character by character.

    Args:
        text: response.
        answer: the right text.
        after: a mark such as "Answer:" or "</think>"; only what follows its last occurrence counts, and a response
            without it is wrong. Empty for the whole response.
        strip: whether blanks around the text and around the answer are dropped.

    Returns:
        1.0 or 0.0.
    """
    given = _given(text, after)
    if given is None:
        return 0.0
    return float(given.strip() == answer.strip() if strip else given == answer)


def normalized_text(
    text: str,
    answer: str,
    *,
    after: str = "",
    ignore_case: bool = True,
    ignore_punctuation: bool = True,
    ignore_articles: bool = True,
) -> float:
    """Judge whether a response is the answer after both are normalized, as in the evaluation of SQuAD.

    Unicode's compatible forms (NFKC) and runs of blanks are always made equal.

    Args:
        text: response.
        answer: the right text.
        after: as for `exact`.
        ignore_case: whether upper and lower case are equal.
        ignore_punctuation: whether punctuation and symbols are dropped. "U.S." is then "us", and "-5" is "5".
        ignore_articles: whether the words a, an and the are dropped.

    Returns:
        1.0 or 0.0.
    """
    given = _given(text, after)
    settings = {
        "ignore_case": ignore_case,
        "ignore_punctuation": ignore_punctuation,
        "ignore_articles": ignore_articles,
    }
    return float(given is not None and _normalized(given, **settings) == _normalized(answer, **settings))


def _given(text: str, after: str) -> str | None:
    if not after:
        return text
    _, mark, given = text.rpartition(after)
    return given if mark else None


def _normalized(text: str, *, ignore_case: bool, ignore_punctuation: bool, ignore_articles: bool) -> str:
    text = unicodedata.normalize("NFKC", text)
    if ignore_case:
        text = text.casefold()
    if ignore_punctuation:
        text = "".join(each for each in text if unicodedata.category(each)[0] not in "PS")
    if ignore_articles:
        text = _ARTICLES.sub(" ", text)
    return " ".join(text.split())


def _check_exact_arguments(after: str = "", strip: bool = True) -> None:
    _check_types({"after": after}, str, "a text")
    _check_types({"strip": strip}, bool, "true or false")


def _check_exact_answer(answer: str, strip: bool = True) -> None:
    if not (answer.strip() if strip else answer):
        raise DataError("exact needs a text as the answer of a prompt, got an empty one.")


def _check_normalized_arguments(
    after: str = "", ignore_case: bool = True, ignore_punctuation: bool = True, ignore_articles: bool = True
) -> None:
    _check_types({"after": after}, str, "a text")
    switches = {"ignore_case": ignore_case, "ignore_punctuation": ignore_punctuation}
    _check_types(switches | {"ignore_articles": ignore_articles}, bool, "true or false")


def _check_types(values: Mapping[str, object], kind: type, words: str) -> None:
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ConfigError(f"{name} is {value!r}; set it to {words}.")


def _check_normalized_answer(
    answer: str, ignore_case: bool = True, ignore_punctuation: bool = True, ignore_articles: bool = True
) -> None:
    if not _normalized(
        answer, ignore_case=ignore_case, ignore_punctuation=ignore_punctuation, ignore_articles=ignore_articles
    ):
        raise DataError(
            f"normalized_text drops all of the answer {answer[:80]!r}, so that any response would be wrong."
        )


exact.check_arguments = _check_exact_arguments  # type: ignore[attr-defined]
exact.check_answer = _check_exact_answer  # type: ignore[attr-defined]
normalized_text.check_arguments = _check_normalized_arguments  # type: ignore[attr-defined]
normalized_text.check_answer = _check_normalized_answer  # type: ignore[attr-defined]
