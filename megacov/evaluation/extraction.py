"""The answer that a response gives, for votes: maj@k counts responses whose answers are equal as texts."""

from __future__ import annotations

import re

from megacov.config.suite import Extraction
from megacov.rewards.verifiers.boxed import last_boxed

_BLANKS = re.compile(r"\s+")
_ENDS = " .$"


def extract_answer(text: str, how: Extraction) -> str | None:
    """Find the answer of a response.

    Args:
        text: the response.
        how: in the last \\boxed{}, after the last ####, or the whole text.

    Returns:
        The answer without blanks, dollar signs and full stops around it and without thousands separators in plain
        numbers; None if there is none. `1/2` and `0.5` are two answers.
    """
    match how:
        case "boxed":
            found = last_boxed(text)
        case "gsm8k":
            found = _after_marks(text)
        case "text":
            found = text
    if found is None:
        return None
    answer = _BLANKS.sub(" ", found).strip(_ENDS)
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", answer):
        answer = answer.replace(",", "")
    return answer or None


def _after_marks(text: str) -> str | None:
    _, marks, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if marks else None
