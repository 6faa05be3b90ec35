"""Entropy and reward are found and paired in the metrics of several programs."""

from __future__ import annotations

import numpy as np
import pytest

from megacov.errors import DataError
from megacov.monitor.entropy_law.curves import KNOWN_TAGS, find_curve
from megacov.monitor.history import Series


def series(steps, values=None) -> Series:
    steps = np.asarray(steps, dtype=np.int64)
    return Series(steps, np.asarray(steps if values is None else values, dtype=np.float64))


@pytest.mark.parametrize("program", KNOWN_TAGS)
def test_the_tags_of_each_program_are_known(program):
    entropy_tags, reward_tags = KNOWN_TAGS[program]
    others = {"perf/step_s": series([0, 1])}
    for entropy_tag in entropy_tags:
        for reward_tag in reward_tags:
            curve = find_curve({entropy_tag: series([1, 2]), reward_tag: series([1, 2]), **others}, source="x")
            assert (curve.entropy_tag, curve.reward_tag) == (entropy_tag, reward_tag)


def test_tags_of_one_program_come_before_those_of_two():
    scalars = {tag: series([1, 2]) for tag in ("entropy", "actor/entropy", "critic/rewards/mean", "train/entropy")}
    curve = find_curve(scalars, source="x")
    assert (curve.entropy_tag, curve.reward_tag) == ("actor/entropy", "critic/rewards/mean")


def test_scores_of_some_steps_are_paired_with_entropies_of_all():
    scalars = {
        "entropy/token_mean": series(range(20), np.arange(20) / 10),
        "eval/aime": series([3, 7, 11, 99], [1, 2, 3, 4]),
    }
    curve = find_curve(scalars, source="x", reward_tag="eval/aime")
    assert curve.steps.tolist() == [3, 7, 11]
    assert curve.entropies.tolist() == [0.3, 0.7, 1.1]
    assert curve.rewards.tolist() == [1, 2, 3]


@pytest.mark.parametrize("last_rollout", [24, 25])  # the last one is logged before it is trained on
def test_slime_counts_optimizer_steps_for_one_and_rollouts_for_the_other(last_rollout):
    entropies = np.repeat(np.arange(25.0), 8) + np.tile([-0.1, 0.1], 100)
    scalars = {
        "train/entropy_loss": series(range(200), entropies),
        "rollout/raw_reward": series(range(last_rollout + 1), 2.0 * np.arange(last_rollout + 1)),
    }
    curve = find_curve(scalars, source="x")
    assert curve.entropies_per_step == 8
    assert curve.steps.tolist() == list(range(25))
    assert curve.entropies == pytest.approx(np.arange(25))
    assert curve.rewards.tolist() == (2.0 * np.arange(25)).tolist()


def test_slime_with_one_axis_is_paired_as_it_is():
    scalars = {"train/entropy_loss": series(range(200)), "rollout/raw_reward": series(range(0, 200, 8))}
    curve = find_curve(scalars, source="x")
    assert curve.entropies_per_step == 1
    assert curve.steps.tolist() == list(range(0, 200, 8))


def test_the_best_reward_is_that_of_the_whole_run():
    scalars = {
        "entropy/token_mean": series([0, 1]),
        "reward/mean": series([0, 1]),
        "reward/max": series([0, 1], [1.5, np.nan]),
    }
    assert find_curve(scalars, source="x").best_reward == 1.5
    del scalars["reward/max"]
    assert find_curve(scalars, source="x").best_reward is None


@pytest.mark.parametrize(
    ("tags", "options", "sentence"),
    [
        (
            {"a": [0], "my/entropy": [0]},
            {},
            r"x has none of the tags that are known: give --entropy one of my/entropy, a\.",
        ),
        ({"entropy": [0], "b": [0], "score": [0]}, {}, r"give --reward one of score, b, entropy\."),
        ({"entropy": [0], "reward": [0]}, {"entropy_tag": "H"}, "no scalar H: give --entropy one of entropy"),
        (
            {"entropy": [0, 1], "reward": [5, 6]},
            {},
            r"no step with both entropy \(steps 0 to 1\) and reward \(steps 5 to 6\)",
        ),
        ({}, {}, "once it has some"),
        ({f"t{i:02}": [0] for i in range(20)}, {}, "t11 and 8 more"),
    ],
)
def test_what_is_missing_is_one_sentence(tags, options, sentence):
    with pytest.raises(DataError, match=sentence):
        find_curve({tag: series(steps) for tag, steps in tags.items()}, source="x", **options)
