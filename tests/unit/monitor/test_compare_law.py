"""The law and pass@k of runs whose coefficients and scores are known, in a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from megacov.evaluation.tensorboard import write_scalars
from megacov.monitor.compare import Run, group_runs, read_run, seed_interval
from megacov.monitor.compare_figure import WIDE_INCHES, write_figure
from megacov.monitor.compare_law import GroupLaw, fit_group
from megacov.monitor.compare_panels import draw_law, draw_pass_at_k, draw_seed_band
from megacov.monitor.compare_scores import common_scores, read_pass_at_k
from megacov.monitor.compare_table import render_law_table, render_table
from megacov.monitor.tensorboard import MetricWriter

A, B = 0.2, 0.9
ENTROPIES = np.linspace(1.2, 0.1, 60)
MakeRun = Callable[..., Path]


def rewards(a: float = A, b: float = B, *, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    return b - a * np.exp(ENTROPIES) + noise * np.random.default_rng(seed).standard_normal(len(ENTROPIES))


def read_group(*folders: Path) -> list[Run]:
    (group,) = group_runs(read_run(folder) for folder in folders)
    return group


@pytest.fixture
def seeds(make_run: MakeRun) -> list[Run]:
    """Three seeds with a of 0.19, 0.2 and 0.21."""
    folders = [
        make_run(f"grpo_seed{seed}", rewards(A + 0.01 * (seed - 1), seed=seed), ENTROPIES, seed=seed)
        for seed in range(3)
    ]
    return read_group(*folders)


def text_of(table: object) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def test_an_interval_over_seeds_is_students() -> None:
    """Of 1, 2, 3: mean 2, standard error 1 / sqrt(3), t with two degrees of freedom 4.3027."""
    interval = seed_interval([1.0, 2.0, 3.0])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert seed_interval([1.0]) is None


def test_the_law_of_seeds_is_their_mean_with_an_interval_over_them(seeds: list[Run]) -> None:
    law = fit_group(seeds)
    each = [one.ceiling for one in law.laws]
    assert (law.a, law.b) == pytest.approx((A, B), abs=0.01)
    assert law.b - law.a == pytest.approx(np.mean(each))
    interval = seed_interval(each)
    assert interval is not None and (law.ceiling.low, law.ceiling.high) == pytest.approx((interval.low, interval.high))
    grid = np.array([0.0, 1.0])
    low, high = law.band(grid)
    assert (low < law.predict(grid)).all() and (law.predict(grid) < high).all()
    assert low[0] == pytest.approx(law.ceiling.low)


def test_the_law_of_a_single_run_has_the_interval_of_its_fit(seeds: list[Run]) -> None:
    law = fit_group(seeds[:1])
    assert law.ceiling == law.laws[0].intervals.ceiling
    assert law.outcome == law.laws[0].verdict.outcome


def test_a_run_that_steers_its_entropy_is_refused_with_its_reason(make_run: MakeRun, seeds: list[Run]) -> None:
    kl_cov = read_group(make_run("kl_cov", rewards(), ENTROPIES, loss="kl_cov"))
    short = read_group(make_run("short", [0.5, 0.6], [1.0, 0.9]))
    stuck = read_group(make_run("stuck", 0 * ENTROPIES, ENTROPIES))
    groups = [seeds, kl_cov, short, stuck]
    laws = [fit_group(group) for group in groups]
    assert [law.is_refused for law in laws] == [False, True, True, True]
    text = text_of(render_law_table(groups, laws))
    assert f"grpo {laws[0].a:.3g} {laws[0].b:.3g} {laws[0].b - laws[0].a:.3g}" in text
    assert "refused" in text and "The run steers its entropy (algorithm.loss is kl_cov)" in text
    assert "short - - - - refused" in text and "There are 2 points" in text


def test_the_highest_reward_of_a_response_bounds_the_ceiling(make_run: MakeRun) -> None:
    folder = make_run("a", rewards(), ENTROPIES)
    with MetricWriter(folder / "tensorboard", first_step=len(ENTROPIES)) as writer:
        writer.write_scalars({"reward/max": 0.25}, step=len(ENTROPIES))
    law = fit_group(read_group(folder))
    assert any("is above 0.25, the highest reward of any response" in reason for reason in law.reasons)


def test_the_table_has_intervals_over_seeds(seeds: list[Run]) -> None:
    text = text_of(render_table([seeds], baseline_group=seeds, reward=0.5))
    assert "+- " in text and "+-: 95 % interval over seeds" in text
    assert "+- " not in text_of(render_table([seeds[:1]], baseline_group=seeds[:1], reward=0.5)).replace("+-:", "")


def _report(scores: dict[str, dict[str, float]]) -> str:
    sets = {name: {"scores": {each: {"value": value} for each, value in of.items()}} for name, of in scores.items()}
    return json.dumps({"sets": sets})


def test_pass_at_k_is_that_of_the_last_evaluation_wherever_it_is_written(tmp_path: Path) -> None:
    reports = tmp_path / "evaluations"
    (reports / "step_10-paper-seed_0").mkdir(parents=True)
    (reports / "step_2.json").write_text(_report({"AIME": {"avg@4": 0.1, "pass@1": 0.1, "pass@4": 0.2}}))
    (reports / "step_10-paper-seed_0" / "results.json").write_text(_report({"AIME": {"pass@4": 0.4}}))
    (reports / "step_11.json").write_text('{"sets": {"AIME": 1}}')
    (reports / "step_2.responses.jsonl").write_text("{")
    write_scalars(tmp_path, {"eval/AIME/pass@1": 0.5, "eval/AIME/response_length": 3.0}, step=9)
    write_scalars(tmp_path, {"eval/AIME/pass@1": 0.25, "eval/new/set/pass@8": 1.0}, step=3)
    found, problems = read_pass_at_k(tmp_path)
    assert found == {("AIME", 1): 0.5, ("AIME", 4): 0.4, ("new/set", 8): 1.0}
    (problem,) = problems
    assert problem.endswith("step_11.json is no report of an evaluation (TypeError): it does not count.")
    assert read_pass_at_k(tmp_path / "none") == ({}, ())


def test_only_what_all_runs_have_is_compared() -> None:
    one = {("A", 1): 0.1, ("A", 2): 0.2, ("A", 4): 0.3, ("B", 1): 0.1, ("B", 2): 0.2, ("C", 1): 0.1}
    assert common_scores([one]) == (("A",), [1, 2, 4])
    assert common_scores([one, {key: 1.0 for key in one if key[1] < 4}]) == (("A", "B"), [1, 2])
    assert common_scores([one, {("C", 1): 0.5}]) == common_scores([]) == ((), [])


def test_a_huge_interval_makes_no_room_for_itself(seeds: list[Run]) -> None:
    figure, axes = plt.subplots()
    axes.plot([0, 1], [0.0, 1.0])
    before = axes.get_ylim()
    draw_seed_band(axes, [0, 1], [[-9.0, -9.0], [9.0, 9.0]], "red")
    assert len(axes.collections) == 1 and axes.get_ylim() == before
    draw_seed_band(axes, [0, 1], [[0.0, 1.0]], "red")
    assert len(axes.collections) == 1, "one seed has no interval"
    plt.close(figure)


def test_the_panel_of_the_law_draws_points_curve_interval_and_ceiling(seeds: list[Run]) -> None:
    figure, axes = plt.subplots()
    law = fit_group(seeds)
    draw_law(axes, seeds, law, "red")
    *clouds, curve, bar = axes.lines
    assert [list(cloud.get_ydata()) for cloud in clouds] == [list(run.rewards) for run in seeds]
    assert curve.get_ydata()[0] == pytest.approx(law.b - law.a)
    assert list(bar.get_ydata()) == [law.ceiling.low, law.ceiling.high]
    assert len(axes.collections) == 1
    draw_law(axes, seeds, GroupLaw(()), "red")
    assert len(axes.lines) == len(seeds) * 2 + 2, "points only where there is no fit"
    plt.close(figure)


def test_the_panel_of_pass_at_k_draws_the_mean_over_sets_and_seeds(make_run: MakeRun) -> None:
    folders = [make_run(f"a_seed{seed}", [0.5], [1.0], seed=seed) for seed in range(3)]
    for seed in range(2):
        for k in (1, 4):
            values = {f"eval/{name}/pass@{k}": (k + seed + offset) / 10 for name, offset in (("A", 0), ("B", 2))}
            write_scalars(folders[seed], values, step=1)
    group = read_group(*folders)
    figure, axes = plt.subplots()
    draw_pass_at_k(axes, group, ("A", "B"), [1, 4], "red", "o")
    *thin, thick = axes.lines
    assert np.allclose([line.get_ydata() for line in thin], [[0.2, 0.5], [0.3, 0.6]])
    assert np.allclose(thick.get_ydata(), [0.25, 0.55])
    plt.close(figure)


def test_a_picture_with_pass_at_k_is_wider(make_run: MakeRun, seeds: list[Run], tmp_path: Path) -> None:
    folder = make_run("scored", rewards(), ENTROPIES)
    write_scalars(folder, {"eval/A/pass@1": 0.2, "eval/A/pass@2": 0.3}, step=60)
    groups = [seeds, read_group(folder)]
    write_figure(groups, [fit_group(group) for group in groups], reward=0.5, path=tmp_path / "wide.png")
    assert plt.imread(tmp_path / "wide.png").shape[1] == round(WIDE_INCHES[0] * 200)
