"""The benchmark of the law's conditions: runs that differ in what they should, kept when finished, and fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.law_conditions import (
    CONDITIONS,
    RUN,
    Condition,
    finished_runs,
    fit_run,
    is_finished,
    summary_row,
    table_row,
)
from megacov.config import load_config
from megacov.config.load import dump_config
from megacov.errors import ConfigError
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.run_end import write_end
from megacov.monitor.tensorboard import MetricWriter

ONE = Condition("rloo", staleness=1, updates=8)


def write_run(folder: Path, condition: Condition = ONE, *, code: int = 0, steps: int = 40) -> Path:
    """A run that follows the law with a = 0.2 and b = 0.9, and ended with a code."""
    config = load_config(RUN, condition.overrides(folder, seed=3, steps=steps))
    run = config.run.directory
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    noise = np.random.default_rng(0).normal(0, 0.003, steps)
    with MetricWriter(run / "tensorboard") as writer:
        for step, entropy in enumerate(np.linspace(1.5, 0.1, steps)):
            reward = 0.9 - 0.2 * np.exp(entropy) + noise[step]
            writer.write_scalars({ENTROPY_TAG: entropy, REWARD_TAG: reward}, step=step + 1)
    write_end(run, code, "")
    return run


def test_conditions_differ_in_estimator_staleness_and_updates_alone(tmp_path):
    configs = [load_config(RUN, each.overrides(tmp_path, seed=0, steps=9)) for each in CONDITIONS]
    found = {
        (each.algorithm.advantages.name, each.rollout.max_staleness, each.batch.updates_per_rollout) for each in configs
    }
    assert found == {(name, old, n) for name in ("group_relative", "rloo") for old in (0, 1) for n in (1, 8)}
    assert len({each.name for each in CONDITIONS}) == len(CONDITIONS) == 8
    assert {each.sequences_per_step for each in configs} == {256}
    first = configs[0].algorithm
    assert all(each.algorithm.model_copy(update={"advantages": first.advantages}) == first for each in configs)


def test_a_run_is_kept_only_if_it_ended_well_with_the_same_settings(tmp_path):
    wanted = load_config(RUN, ONE.overrides(tmp_path, seed=3, steps=40))
    assert not is_finished(wanted)
    write_run(tmp_path)
    assert is_finished(wanted)
    assert [(condition, seed) for condition, seed, _ in finished_runs(tmp_path, seeds=[2, 3], steps=40)] == [(ONE, 3)]
    with pytest.raises(ConfigError, match=r"holds another run \(run.steps was 40 and is 41\): name another --folder"):
        is_finished(load_config(RUN, ONE.overrides(tmp_path, seed=3, steps=41)))
    with pytest.raises(ConfigError, match=r"holds another run \(optimizer.lr was 0.0003 and is 0.1\)"):
        is_finished(load_config(RUN, [*ONE.overrides(tmp_path, seed=3, steps=40), "optimizer.lr=0.1"]))


def test_a_run_that_failed_begins_anew(tmp_path):
    write_run(tmp_path, code=75)
    assert not is_finished(load_config(RUN, ONE.overrides(tmp_path, seed=3, steps=40)))


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_row_has_the_coefficients_that_the_run_was_made_with(tmp_path):
    curve, law = fit_run(write_run(tmp_path))
    cells = cells_of(table_row(ONE, 3, curve, law))
    assert cells[:3] == ["rloo staleness1 updates8", "3", "1.50 to 0.10"]
    assert [cell.split(" ")[0] for cell in cells[3:6]] == ["0.20", "0.90", "0.70"]
    assert 0.002 <= float(cells[7]) <= 0.004, "the noise of the rewards"
    assert cells[9] == "doubtful: off_policy"


def test_first_steps_can_be_left_out_and_a_summary_spans_the_seeds(tmp_path):
    run = write_run(tmp_path)
    _, all_steps = fit_run(run)
    curve, later = fit_run(run, skip=10)
    assert (all_steps.num_points, later.num_points, len(curve.rewards)) == (40, 30, 40)
    assert all_steps.early is not None and later.early is None, "15 % of 30 points are too few"
    cells = cells_of(summary_row(ONE, [all_steps, later]))
    low, high = sorted([all_steps.rmse, later.rmse])
    assert cells[:2] == ["rloo staleness1 updates8", "2"]
    assert cells[5] == f"{(low + high) / 2:.2f} ({low:.2f} to {high:.2f})"
    assert cells_of(summary_row(ONE, [later]))[6] == "none"
