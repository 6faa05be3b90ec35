r"""Verifier of multiple choice: the letter in \boxed{}, after "answer", or on the last line."""

from __future__ import annotations

import re

from megacov.errors import ConfigError, DataError
from megacov.rewards.verifiers.boxed import last_boxed

_LETTERS = "ABCDEFGHIJ"
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm|bf)\s*\{([^{}]*)\}")
# Not the A of "A's"; a quotation mark may follow.
_NO_WORD = r"(?![A-Za-z0-9]|['\u2019][A-Za-z])"
_NO_WORD_BEFORE = r"(?<![A-Za-z0-9])(?<![A-Za-z]['\u2019])"
_STATED = re.compile(
    r"\banswer(?:\s+(?:choice|option))?(?:\s+(?:is|should\s+be|must\s+be|would\s+be))?\s*[:=]?\s*"
    rf"(?:(?:choice|option)\s+)?['\"\u2018\u201c]?(?-i:\(([A-Za-z])\)|([A-Z]){_NO_WORD})",
    re.IGNORECASE,
)
_ANOTHER = re.compile(rf"\s*(?:,|/|&|\band\b|\bor\b)\s*(?:\([A-Za-z]\)|[A-Z]){_NO_WORD}")
# Without parentheses, "A" and "I" before a word in lower case are an article and a pronoun.
_ALONE = re.compile(rf"\(([A-Za-z])\)|{_NO_WORD_BEFORE}([B-HJ-Z]|[AI](?!\s[a-z])){_NO_WORD}")
_BOXED = re.compile(r"\(?([A-Za-z])(?:[).:](?:\s+(.*))?)?", re.DOTALL)


def multiple_choice(text: str, answer: str, *, num_choices: int = 10, first_index: int = 0) -> float:
    r"""Judge whether a response chooses the right letter.

    The first of these that the response has decides, and it scores 0 if that names no letter, or several:

    1. its last \boxed{}: one letter, as in "B", "(b)", "B." or "(B) Paris";
    2. the last place that states the answer: "The answer is (B)", "Answer: B", "answer is option B";
    3. its last line that is not blank: the letters of choices that stand alone in it, such as "B", "(b)" or "B.". The
       article "A" and the pronoun "I" do not count.

    Letters are in upper case, or in parentheses or in the box in either case. Marks of Markdown are dropped.

    Args:
        text: response.
        answer: a letter, or the number of a choice.
        num_choices: number of choices, at most 10: A to J.
        first_index: number of the first choice, where answers are numbers.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: `answer` is none of the choices.
    """
    gold = _gold(answer, num_choices=num_choices, first_index=first_index)
    return float(_chosen(text, letters=_LETTERS[:num_choices]) == gold)


def _chosen(text: str, *, letters: str) -> str | None:
    text = _MARKUP.sub(r"\1", text).replace("\\ ", " ")
    box = last_boxed(text)
    if box is not None:
        boxed = _BOXED.fullmatch(box)
        return boxed[1].upper() if boxed and not _letters(boxed[2] or "", letters) else None
    text = re.sub(r"[*_`$]", "", text)
    if stated := list(_STATED.finditer(text)):
        return None if _ANOTHER.match(text, stated[-1].end()) else (stated[-1][1] or stated[-1][2]).upper()
    lines = [line for line in text.splitlines() if line.strip()]
    alone = _letters(lines[-1], letters) if lines else set()
    return alone.pop() if len(alone) == 1 else None


def _letters(text: str, letters: str) -> set[str]:
    """The letters of choices that stand alone in a text."""
    return {(match[1] or match[2]).upper() for match in _ALONE.finditer(text)} & set(letters)


def check_arguments(num_choices: int = 10, first_index: int = 0) -> None:
    """Raises ConfigError for a number of choices outside 2 to 10, or a first index that is no whole number."""
    if isinstance(num_choices, bool) or not isinstance(num_choices, int) or num_choices not in range(2, 11):
        raise ConfigError(f"num_choices is {num_choices!r}; set it to a whole number from 2 to 10.")
    if isinstance(first_index, bool) or not isinstance(first_index, int):
        raise ConfigError(f"first_index is {first_index!r}; set it to a whole number.")


def check_answer(answer: str, num_choices: int = 10, first_index: int = 0) -> None:
    """Raises DataError if `answer` is none of the choices."""
    _gold(answer, num_choices=num_choices, first_index=first_index)


def _gold(answer: str, *, num_choices: int, first_index: int) -> str:
    letters, given = _LETTERS[:num_choices], answer.strip()
    if re.fullmatch("-?[0-9]{1,3}", given) and 0 <= int(given) - first_index < num_choices:
        return letters[int(given) - first_index]
    letter = re.fullmatch(r"\(?([A-Za-z])\)?\.?", given)
    if letter is None or letter[1].upper() not in letters:
        last = first_index + num_choices - 1
        raise DataError(
            f"multiple_choice needs a letter from A to {letters[-1]}, or a number from {first_index} to {last}, as the "
            f"answer of a prompt, got {answer[:80]!r}."
        )
    return letter[1].upper()


multiple_choice.check_arguments = check_arguments  # type: ignore[attr-defined]
multiple_choice.check_answer = check_answer  # type: ignore[attr-defined]
