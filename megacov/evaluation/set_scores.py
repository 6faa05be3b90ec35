"""The scores of one set, from all responses to its problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megacov.config.suite import EvaluationSet
from megacov.evaluation.records import Answered, Response
from megacov.evaluation.scores import Interval, bootstrap_intervals, majority_at_k, pass_at_k


@dataclass(frozen=True, slots=True)
class SetScores:
    """The outcome of one set.

    num_problems, num_responses: counts.
    scores: mean over problems and its interval, by name: avg@n, pass@k, maj@k; the first is the set's column.
    response_length: mean. [tokens]
    truncated_share: share of responses that the length limit cut; they count as wrong.
    negative_log_prob: mean of -log p over all sampled tokens, with the server's log-probs. [nats a token]
    failures: responses on which the verifier failed, by kind; they count as wrong.
    """

    num_problems: int
    num_responses: int
    scores: dict[str, tuple[float, Interval]]
    response_length: float
    truncated_share: float
    negative_log_prob: float
    failures: dict[str, int]


def score_names(settings: EvaluationSet) -> tuple[str, ...]:
    """Names of a set's scores, in the order of the report."""
    return (
        f"avg@{settings.samples}",
        *(f"pass@{k}" for k in settings.pass_at),
        *(f"maj@{k}" for k in settings.maj_at),
    )


def score_set(answered: Sequence[Answered], settings: EvaluationSet, *, seed: int) -> SetScores:
    """Score a set.

    Args:
        answered: its problems, at least one, each with `settings.samples` responses.
        settings: settings of the set.
        seed: of the bootstrap.

    Returns:
        The scores. Neither the order of the problems nor that of the responses to one matters, except to the last bits
        of sums and to the resampling; give the problems in the order of the file.
    """
    rows = list(zip(*(_problem_scores(each.responses, settings) for each in answered), strict=True))
    intervals = bootstrap_intervals(rows, seed=seed)
    means = [sum(row) / len(row) for row in rows]
    responses = [response for each in answered for response in each.responses]
    num_tokens = sum(response.num_tokens for response in responses)
    failures = Counter(response.failure for response in responses if response.failure is not None)
    return SetScores(
        num_problems=len(answered),
        num_responses=len(responses),
        scores=dict(zip(score_names(settings), zip(means, intervals, strict=True), strict=True)),
        response_length=num_tokens / len(responses),
        truncated_share=sum(response.finish_reason == "length" for response in responses) / len(responses),
        negative_log_prob=-sum(response.log_prob for response in responses) / max(1, num_tokens) + 0.0,
        failures=dict(sorted(failures.items())),
    )


def _problem_scores(responses: Sequence[Response], settings: EvaluationSet) -> list[float]:
    """One problem's scores, in the order of `score_names`."""
    num_samples = len(responses)
    num_right = sum(_is_right(response, settings) for response in responses)
    votes = _votes(responses, settings)
    return [
        sum(response.reward for response in responses) / num_samples,
        *(pass_at_k(num_samples, num_right, k) for k in settings.pass_at),
        *(majority_at_k(votes, num_samples, k) for k in settings.maj_at),
    ]


def _is_right(response: Response, settings: EvaluationSet) -> bool:
    is_judged = response.failure is None and response.finish_reason != "length"
    return is_judged and response.reward >= settings.right_from


def _votes(responses: Sequence[Response], settings: EvaluationSet) -> list[tuple[int, bool]]:
    """Responses by answer; an answer is right if more than half of the responses that give it are."""
    verdicts: dict[str, list[bool]] = {}
    for response in responses:
        if response.answer is not None:
            verdicts.setdefault(response.answer, []).append(_is_right(response, settings))
    return [(len(each), 2 * sum(each) > len(each)) for each in verdicts.values()]
