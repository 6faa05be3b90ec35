"""What a run is worth: each objective on curves whose value can be worked out by hand."""

from __future__ import annotations

import pytest

from megacov.config.sweep import EntropyObjective, EvaluationObjective, RewardObjective
from megacov.evaluation.tensorboard import write_scalars
from megacov.sweep.value import counted_values, mean_value, value_of, values_by_step
from tests.support.scripted_place import write_run

# Reward rises by 1/32 a step and entropy falls by as much, so that moving averages lie on the same lines.
CURVE = [(step / 32, 2 - step / 32) for step in range(1, 33)]
AT_HALF, AT_TWO = EntropyObjective(reward=0.5), EntropyObjective(reward=2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, name="run", seed=0, curve=CURVE)
    return folder


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (RewardObjective(last_steps=1), 1.0),
        (RewardObjective(last_steps=3), 31 / 32),
        (RewardObjective(last_steps=None), 33 / 64),
        (AT_HALF, 1.5),
        # Not reached: the best moving average, which is over the last three steps at the end, minus the target.
        (AT_TWO, 31 / 32 - 2),
    ],
)
def test_values_of_a_run(run, objective, value):
    found = value_of(run, objective)
    assert found.value == pytest.approx(value, abs=1e-6)
    assert (found.steps, found.problem) == (32, "")
    assert found.reward == pytest.approx(sum(reward for reward, _ in CURVE[-10:]) / 10, abs=1e-6)
    assert found.entropy == pytest.approx(2 - found.reward, abs=1e-6)


@pytest.mark.parametrize("objective", [RewardObjective(last_steps=4), RewardObjective(last_steps=None), AT_HALF])
def test_a_value_at_a_step_is_that_of_a_run_which_ends_there(run, tmp_path, objective):
    steps = values_by_step(run, objective, after=0)
    assert [step for step, _ in steps] == list(range(1, 33))
    for end in (1, 7, 16, 20):
        write_run(tmp_path / str(end), name="run", seed=0, curve=CURVE[:end])
        assert value_of(tmp_path / str(end), objective).value == pytest.approx(steps[end - 1][1], abs=1e-6)
    assert values_by_step(run, objective, after=30) == steps[30:]


def test_a_run_that_reaches_the_reward_is_worth_more_than_one_that_does_not():
    assert mean_value([0.2, 0.4], AT_HALF) == pytest.approx(0.3)
    # One seed of three falls short by 0.3; what the others keep does not make up for it.
    assert mean_value([1.9, 1.9, -0.3], AT_HALF) == pytest.approx(-0.1)
    assert mean_value([1.9, 1.9, -0.3], RewardObjective()) == pytest.approx(3.5 / 3)
    # An interval is that of what counts, around the mean of it.
    assert counted_values([1.9, 1.9, -0.3], AT_HALF) == [0.0, 0.0, -0.3] and counted_values([], AT_HALF) == []


def test_the_last_evaluation_counts(run, tmp_path):
    folder = tmp_path / "run"
    write_run(folder, name="run", seed=0, curve=CURVE)
    objective = EvaluationObjective(set="sum_pairs", score="pass@4")
    missing = value_of(folder, objective)
    assert missing.value is None and "has no finished evaluation with pass@4 of the set sum_pairs" in missing.problem
    for step, value in ((0, 0.125), (10, 0.5), (20, 0.25)):
        write_scalars(folder, {"eval/sum_pairs/pass@4": value, "eval/sum_pairs/avg@8": 0.9}, step=step)
    assert value_of(folder, objective).value == 0.25
    assert values_by_step(folder, objective, after=0) == [(10, 0.5), (20, 0.25)]


def test_a_folder_without_a_run_has_a_sentence_and_no_value(tmp_path):
    found = value_of(tmp_path / "none", RewardObjective())
    assert found.value is None and "none is not a folder" in found.problem
    assert values_by_step(tmp_path / "none", RewardObjective(), after=0) == []
