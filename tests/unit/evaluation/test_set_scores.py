"""Scores of a set by hand: what counts as right, and what as a vote."""

from __future__ import annotations

import pytest

from megacov.config.suite import EvaluationSet
from megacov.evaluation.records import Answered, Response
from megacov.evaluation.set_scores import score_names, score_set

SETTINGS = EvaluationSet(
    name="set", path="x", verifier="sum_pairs", samples=4, pass_at=(1, 2, 4), maj_at=(1, 4), extract="text"
)


def _response(reward: float, answer: str | None = "a", *, finish: str = "stop", failure: str | None = None) -> Response:
    return Response(answer or "", reward, failure, finish, 2, -1.0, answer)  # type: ignore[arg-type]


def _set(*problems: tuple[Response, ...]) -> list[Answered]:
    return [Answered("set", index, "", responses) for index, responses in enumerate(problems)]


RIGHT, WRONG = _response(1.0, "r"), _response(0.0, "w")


def test_scores_by_hand():
    scores = score_set(_set((RIGHT, RIGHT, WRONG, WRONG), (WRONG,) * 4), SETTINGS, seed=0).scores
    assert tuple(scores) == score_names(SETTINGS) == ("avg@4", "pass@1", "pass@2", "pass@4", "maj@1", "maj@4")
    values = {name: value for name, (value, _) in scores.items()}
    # One pair of two right of four misses with chance 1/6; two votes against two are a tie.
    assert values == {
        "avg@4": 0.25,
        "pass@1": 0.25,
        "pass@2": pytest.approx(5 / 12),
        "pass@4": 0.5,
        "maj@1": 0.25,
        "maj@4": 0.25,
    }
    assert all(interval.low <= value <= interval.high for value, interval in scores.values())


@pytest.mark.parametrize("wrong", [_response(1.0, finish="length"), _response(1.0, failure="timeout")])
def test_cut_responses_and_failures_of_the_verifier_are_not_right(wrong):
    scores = score_set(_set((wrong,) * 4), SETTINGS, seed=0)
    assert [value for name, (value, _) in scores.scores.items() if name != "avg@4"] == [0.0] * 5


def test_failures_and_cuts_are_reported():
    failed, cut = _response(0.0, failure="timeout"), _response(0.0, None, finish="length")
    scores = score_set(_set((RIGHT, failed, failed, cut), (WRONG,) * 4), SETTINGS, seed=0)
    assert scores.failures == {"timeout": 2}
    assert scores.truncated_share == 1 / 8
    assert (scores.num_problems, scores.num_responses, scores.response_length) == (2, 8, 2.0)
    assert scores.negative_log_prob == 0.5


def test_a_graded_reward_is_averaged_and_counts_as_right_from_a_threshold():
    graded = SETTINGS.model_copy(update={"right_from": 0.5})
    half, third = _response(0.5, "r"), _response(0.25, "w")
    values = {
        name: value for name, (value, _) in score_set(_set((half, third, third, third)), graded, seed=0).scores.items()
    }
    assert values["avg@4"] == 0.3125
    assert values["pass@1"] == 0.25


def test_responses_without_an_answer_have_no_vote():
    silent = _response(0.0, None)
    scores = score_set(_set((RIGHT, silent, silent, silent)), SETTINGS, seed=0).scores
    assert scores["maj@4"][0] == 1.0
    assert scores["maj@1"][0] == 0.25


def test_an_answer_is_right_if_most_responses_that_give_it_are():
    odd = _response(0.0, "r")
    assert score_set(_set((RIGHT, RIGHT, odd, odd)), SETTINGS, seed=0).scores["maj@4"][0] == 0.0
    assert score_set(_set((RIGHT, RIGHT, RIGHT, odd)), SETTINGS, seed=0).scores["maj@4"][0] == 1.0


def test_responses_without_tokens():
    empty = Response("", 0.0, None, "stop", 0, 0.0, None)
    assert score_set(_set((empty,) * 4), SETTINGS, seed=0).negative_log_prob == 0.0
