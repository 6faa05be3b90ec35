"""The law in runs that are built to show it, or to break one of its conditions."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.entropy_law import PAPER, SHAPES, autoregression
from megacov.errors import DataError
from megacov.monitor.entropy_law import Reason, fit

TIME = np.linspace(0, 1, 150)
ENTROPIES = SHAPES["falls slowly"](TIME)
SUDDEN = 0.05 + 1.4 * np.exp(-30 * TIME)
NOISE = autoregression(150, 1, 0.3, np.random.default_rng(3))[0]


def law_of(entropies=ENTROPIES, *, noise=0.01, **settings):
    return fit(entropies, 0.6 - 0.2 * np.exp(entropies) + noise * NOISE[: len(entropies)], **settings)


def kinds(law) -> list[str]:
    return [reason.kind for reason in law.verdict.reasons]


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_coefficients_are_recovered_from_noisy_curves(size):
    a, b = PAPER[size]
    entropies = SHAPES["collapses at once"](np.linspace(0, 1, 236))
    noise = 0.005 * autoregression(236, 1, 0.3, np.random.default_rng(int(10 * size)))[0]
    law = fit(entropies, b - a * np.exp(entropies) + noise, conditions=())
    assert law.verdict.outcome == "holds"
    assert (law.a, law.b, law.ceiling) == pytest.approx((a, b, b - a), abs=0.006)
    assert law.intervals.a.high - law.intervals.a.low < 0.012  # tests/benchmarks counts how often they hold the truth
    assert law.early.num_points == 36  # 15 % of 236, as in the paper
    assert law.early.rmse < 0.012
    assert abs(law.early.final_error) < 0.02


def test_the_numbers_of_a_law_agree_with_each_other():
    law = law_of(conditions=())
    assert law.verdict.outcome == "holds" and law.num_points == 150
    assert law.ceiling == pytest.approx(law.b - law.a)
    assert law.predict(0.0) == pytest.approx(law.ceiling)
    residuals = 0.6 - 0.2 * np.exp(ENTROPIES) + 0.01 * NOISE - [law.predict(entropy) for entropy in ENTROPIES]
    assert law.rmse == pytest.approx(np.sqrt(np.mean(residuals**2)))
    assert law.rmse == pytest.approx(0.01, rel=0.2)


def test_the_early_prediction_never_sees_the_rest():
    entropies, rewards = ENTROPIES, 0.6 - 0.2 * np.exp(ENTROPIES) + 0.01 * NOISE
    early = fit(entropies, rewards, early=0.2).early
    alone = fit(entropies[:30], rewards[:30])
    assert early.num_points == 30
    assert (early.a, early.b, early.ceiling) == pytest.approx((alone.a, alone.b, alone.ceiling))
    assert early.ceiling_interval == alone.intervals.ceiling
    errors = np.array([alone.predict(entropy) for entropy in entropies[30:]]) - rewards[30:]
    assert early.rmse == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert early.final_error == pytest.approx(errors[-1])
    assert fit(entropies[:30], rewards[:30], early=0.1).early is None  # three points


def test_steps_that_are_not_finite_are_left_out_and_named():
    entropies, rewards = ENTROPIES.copy(), 0.6 - 0.2 * np.exp(ENTROPIES) + 0.01 * NOISE
    entropies[7], rewards[30] = np.nan, np.inf
    law = fit(entropies, rewards, conditions=())
    kept = np.isfinite(entropies) & np.isfinite(rewards)
    assert law.a == fit(entropies[kept], rewards[kept]).a
    assert law.num_points == 148
    assert (law.verdict.outcome, kinds(law)) == ("doubtful", ["not_finite"])
    assert "2 of 150 steps" in law.verdict.reasons[0].sentence
    rewards[60:100] = np.nan
    assert fit(entropies, rewards).verdict.outcome == "refused"


@pytest.mark.parametrize(
    ("kind", "entropies"),
    [
        ("too_few_points", ENTROPIES[:19]),
        ("too_few_points", ENTROPIES[:0]),
        ("narrow_range", 0.4 + 0.03 * ENTROPIES / ENTROPIES.max()),
        ("narrow_range", np.full(150, 0.4)),
        ("entropy_not_falling", ENTROPIES[::-1]),
        ("negative_entropy", -ENTROPIES[::-1]),
    ],
)
def test_points_that_show_no_law_are_refused(kind, entropies):
    law = law_of(entropies, conditions=())
    assert law.verdict.outcome == "refused"
    assert kinds(law)[0] == kind
    has_fit = kind not in ("too_few_points", "narrow_range")
    assert np.isfinite([law.a, law.intervals.ceiling.low]).all() == has_fit
    assert (law.diagnostics is not None) == (law.curve is not None) == has_fit


@pytest.mark.parametrize(
    ("kind", "entropies", "change"),
    [
        ("no_relation", ENTROPIES, lambda rewards: 0.3 + 0.01 * NOISE),
        ("no_relation", ENTROPIES, lambda rewards: -rewards),
        ("far_ceiling", 1.5 + 0.2 * ENTROPIES, lambda rewards: rewards),
        ("drift", ENTROPIES, lambda rewards: rewards + np.cumsum(0.02 * NOISE)),
        ("residual_runs", ENTROPIES, lambda rewards: rewards + 0.05 * (-1.0) ** np.arange(150)),
        ("halves_differ", ENTROPIES, lambda rewards: rewards - np.where(TIME > 0.5, 0.2, 0)),
        ("curvature", ENTROPIES, lambda rewards: rewards - 0.1 * np.exp(ENTROPIES) ** 2),
        ("influence", SUDDEN, lambda rewards: np.where(TIME < 0.1, rewards, rewards[15])),
        ("entropy_rises_again", ENTROPIES + np.where(TIME > 0.9, 0.8, 0.0), lambda rewards: rewards),
    ],
)
def test_curves_that_break_the_law_are_flagged(kind, entropies, change):
    rewards = 0.6 - 0.2 * np.exp(entropies) + 0.005 * NOISE[: len(entropies)]
    law = fit(entropies, change(rewards), conditions=())
    assert kind in kinds(law)
    assert law.verdict.outcome == ("refused" if kind == "no_relation" else "doubtful")


def test_a_ceiling_above_every_possible_reward_is_flagged():
    assert law_of(best_reward=0.45, conditions=()).verdict.outcome == "holds"
    assert kinds(law_of(best_reward=0.3, conditions=())) == ["impossible_ceiling"]


def test_settings_decide_too_and_refusals_come_first():
    reasons = (Reason("changing_data", "Data changed.", False), Reason("intervention", "A bonus.", True))
    law = law_of(conditions=reasons)
    assert (law.verdict.outcome, kinds(law)) == ("refused", ["intervention", "changing_data"])
    assert np.isfinite(law.a)  # for those who study the law where it need not hold
    assert law_of(conditions=reasons[:1]).verdict.outcome == "doubtful"
    assert "not known" in law_of().verdict.sentence
    assert "not known" not in law_of(conditions=()).verdict.sentence


def test_healthy_runs_are_seldom_flagged():
    noises = 0.01 * autoregression(150, 120, 0.5, np.random.default_rng(5))
    flagged = [kinds(fit(ENTROPIES, 0.6 - 0.2 * np.exp(ENTROPIES) + noise)) for noise in noises]
    assert sum(map(bool, flagged)) <= 2, flagged


def test_a_long_run_is_fitted_at_once():
    entropies = SHAPES["falls slowly"](np.linspace(0, 1, 100_000))
    assert fit(entropies, 0.6 - 0.2 * np.exp(entropies)).ceiling == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1.0, 2.0], [1.0]), r"one reward for each entropy, and the shapes are \(1,\) and \(2,\)"),
        (([[1.0]], [[1.0]]), "one reward for each entropy"),
    ],
)
def test_shapes_that_disagree_are_one_sentence(arguments, sentence):
    with pytest.raises(DataError, match=sentence):
        fit(*arguments)


@pytest.mark.parametrize("early", [0.0, 1.0, float("nan")])
def test_a_share_must_be_one(early):
    with pytest.raises(DataError, match="between 0 and 1"):
        law_of(early=early)


@pytest.mark.parametrize(
    ("entropies", "reward"),
    [(np.linspace(900, 1, 40), 1.0), (np.linspace(2, 0.1, 40), 1e200), (-(10.0 ** np.arange(1, 41)), 1.0)],
)
def test_values_that_are_no_entropy_or_no_reward_are_refused_and_not_fitted(entropies, reward):
    law = fit(entropies, np.linspace(0, reward, 40))
    assert (law.verdict.outcome, law.curve) == ("refused", None)
    assert "too_large" in kinds(law)


def test_an_outlier_as_large_as_an_entropy_can_be_has_no_traceback():
    entropies = ENTROPIES.copy()
    entropies[70] = 19.9  # all other points then lie at one place of exp(H)
    law = law_of(entropies)
    assert law.diagnostics.curvature_p == 1
    assert np.isfinite([law.a, law.b, law.ceiling]).all()
