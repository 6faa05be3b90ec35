"""A graded verifier: how near the last number of a response is to the answer."""

from __future__ import annotations

from megacov.rewards.verifiers.numbers import find_numbers, only_number


def closeness(text: str, answer: str) -> float:
    """The smaller of the two magnitudes over the larger: 1 for the right number, 1/2 for half of it or twice as much.

    Args:
        text: response.
        answer: a number.

    Returns:
        0 to 1; 0 if the response has no number, or one of another sign.
    """
    gold, given = only_number(answer), next(reversed(find_numbers(text)), None)
    if gold is None or given is None or gold * given < 0:
        return 0.0
    if gold == given:
        return 1.0
    return float(min(abs(gold), abs(given)) / max(abs(gold), abs(given)))
