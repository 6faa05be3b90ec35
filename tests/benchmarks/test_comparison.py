"""The comparison of methods: equal terms, the choice of the best value, and what is written of runs that are known."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.comparison import render, train
from benchmarks.comparison_page import fill_page
from benchmarks.comparison_plan import PLAN, ROOT, TaskSweeps, read_plan
from benchmarks.comparison_results import read_best, read_methods, relative_costs
from megacov.errors import ConfigError, DataError
from megacov.sweep.folder import Outcome, SweepFolder
from megacov.sweep.setting import Setting, SweepRun, fixed_settings
from tests.support.scripted_place import ScriptedPlace

ONLY = ["grpo", "kl_cov"]
VALUES = {"grpo": [0.1, 0.2], "kl_cov": [0.03, 0.1]}


def small_plan(folder: Path, **changes: Any) -> Path:
    """The plan with two methods, two values of each and few steps."""
    plan = read_plan(PLAN).model_dump(mode="json")
    task = {**plan["tasks"]["sum_pairs"], "only": ONLY, "tuning_steps": 3, "final_steps": 4}
    tuned = {name: {**plan["tuned"][name], "values": VALUES[name]} for name in ONLY}
    path = folder / "plan.yaml"
    path.write_text(json.dumps({**plan, "tasks": {"sum_pairs": task}, "tuned": tuned, "seeds": [0, 1], **changes}))
    return path


def sweeps_in(folder: Path, **changes: Any) -> TaskSweeps:
    return TaskSweeps(read_plan(small_plan(folder, **changes)), "sum_pairs", folder / "sum_pairs")


@pytest.mark.parametrize("task", ["sum_pairs", "graph_coloring"])
def test_methods_differ_in_nothing_but_their_algorithm(tmp_path: Path, task: str) -> None:
    sweeps = TaskSweeps(read_plan(PLAN), task, tmp_path)
    seen: dict[str, dict[str, Any]] = {}

    def look(stage: str, setting: Setting, method: str, value: float) -> None:
        config = setting.config.model_dump(mode="json")
        for key in sweeps.tuned(method).keys:
            at: Any = config
            for part in key.split("."):
                at = at[part]
            assert at == value, f"{setting.name}: {key}"
        del config["algorithm"], config["run"]["name"], config["run"]["directory"]
        assert seen.setdefault(stage, config) == config, setting.name

    algorithms = set()
    for method in sweeps.entries:
        tuned = sweeps.tuned(method)
        tuning, final = sweeps.tuning(method), sweeps.final(method, tuned.values[0])
        assert len(tuned.values) == 3 and len(tuning.seeds) == 1 and len(final.seeds) == 3
        assert not set(tuning.seeds) & set(final.seeds)
        for setting, value in zip(fixed_settings(tuning), tuned.values, strict=True):
            look("tuning", setting, method, value)
            algorithms.add(setting.config.algorithm.model_dump_json())
        (setting,) = fixed_settings(final)
        look("final", setting, method, tuned.values[0])
    assert len(algorithms) == 3 * len(sweeps.entries), "two runs that tune have the same algorithm"


def reward_of(run: SweepRun) -> float:
    """The second value is best; method and seed are seen in the number."""
    loss = run.setting.config.algorithm.loss
    value = loss.clip_high if loss.name == "ppo_clip" else run.setting.config.algorithm.selection.ratio
    return 0.4 + 0.5 * value + 0.01 * run.seed + 0.05 * (loss.name == "kl_cov")


class Place(ScriptedPlace):
    """Runs of known curves, times and scores. `failing` fail, and the place breaks before run number `breaks_at`."""

    all_started: ClassVar[list[str]] = []
    failing: tuple[str, ...] = ()
    breaks_at = 10**6

    def __init__(self, folder: SweepFolder, *, timeout_s: float | None) -> None:
        super().__init__(self.all_started)

    def start_one(self, run: SweepRun) -> None:
        if len(self.all_started) >= self.breaks_at:
            raise KeyboardInterrupt
        if run.name in self.failing:
            self.started.append(run.name)
            return
        super().start_one(run)
        steps = run.setting.config.run.steps
        scores = {"pass@1": {"value": 0.25}, "pass@8": {"value": 0.75}}
        (run.directory / "evaluations").mkdir()
        report = json.dumps({"sets": {"sum_pairs": {"scores": scores}}})
        (run.directory / "evaluations" / f"step_{steps}.json").write_text(report)

    def others(self, run: SweepRun) -> dict[str, float]:
        return {"perf/step_s": 3.0 if run.setting.config.algorithm.loss.name == "kl_cov" else 2.0}

    def reward_of(self, run: SweepRun) -> float:
        return reward_of(run)

    def poll(self, run: SweepRun) -> Outcome | None:
        return Outcome("failed", 7, "a NaN") if run.name in self.failing else super().poll(run)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> type[Place]:
    monkeypatch.setattr(Place, "all_started", [])
    monkeypatch.setattr("megacov.sweep.local.LocalPlace", Place)
    monkeypatch.setattr("megacov.cli.sweep._LOCAL_POLL_S", 0.0)
    return Place


def test_a_comparison_that_is_interrupted_repeats_and_loses_no_run(
    tmp_path: Path, place: type[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = sweeps_in(tmp_path)
    monkeypatch.setattr(place, "breaks_at", 3)
    with pytest.raises(KeyboardInterrupt):
        train(sweeps, ONLY, retry_failed=False)
    monkeypatch.setattr(place, "breaks_at", 10**6)
    monkeypatch.setattr(place, "failing", ("kl_cov_seed1",))
    (failed,) = train(sweeps, ONLY, retry_failed=False)
    assert "kl_cov_final-0.1" in failed
    wanted = ["grpo-0.1_seed3", "grpo-0.2_seed3", "grpo_seed0", "grpo_seed1"]
    wanted += ["kl_cov-0.03_seed3", "kl_cov-0.1_seed3", "kl_cov_seed0", "kl_cov_seed1"]
    assert place.all_started == wanted

    methods = read_methods(sweeps)
    assert [(each.best, each.count("done"), each.count("failed")) for each in methods] == [(1, 2, 0), (1, 1, 1)]
    # Rewards rise evenly from a quarter of the last one, so the mean of four steps is 5 / 8 of it.
    assert methods[0].values("area") == pytest.approx([5 / 8 * 0.5, 5 / 8 * 0.51], rel=1e-6)
    assert relative_costs(methods) == {"grpo": [1.0, 1.0], "kl_cov": [1.5]}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- sum_pairs: begin -->\nold\n<!-- sum_pairs: end -->\nafter\n")
    render(sweeps, page)
    text = page.read_text()
    render(sweeps, page)
    assert page.read_text() == text and text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| grpo | 0.2 | 2 | 0.316 +- 0.004 | 0.316 +- 0.004 | not reached | " in text
    assert "kl_cov failed with seed 1." in text and "**0.2: " in text
    assert (tmp_path / "figures" / "methods_sum_pairs.png").stat().st_size > 10_000
    assert "](figures/methods_sum_pairs.png)" in text

    rows = list(csv.DictReader(io.StringIO((sweeps.folder / "runs.csv").read_text())))
    assert len(rows) == 8 and [row["is_best"] for row in rows] == list("01110111")
    assert {(row["pass@1"], row["pass@8"]) for row in rows if row["state"] == "done"} == {("0.25", "0.75")}
    assert rows[-1]["state"] == "failed" and rows[-1]["reward"] == ""

    # What has failed starts again when asked for, and nothing else.
    monkeypatch.setattr(place, "failing", ())
    assert train(sweeps, ONLY, retry_failed=True) == []
    assert place.all_started == [*wanted, "kl_cov_seed1"]


def test_the_best_value_has_the_largest_area_and_waits_for_all_runs(tmp_path: Path, place: type[Place]) -> None:
    source = random.Random(0)
    for case in range(20):
        folder = tmp_path / str(case)
        folder.mkdir()
        sweep = sweeps_in(folder).tuning("grpo")
        runs = [SweepRun(setting, 3) for setting in fixed_settings(sweep)]
        target = SweepFolder(sweep.directory)
        areas: dict[int, float] = {}
        with target.held():
            for number in source.sample(range(len(runs)), len(runs)):
                assert read_best(sweep) is None
                if source.random() < 0.3:
                    target.write_outcome(runs[number], Outcome("failed", 7, "a NaN"))
                    continue
                areas[number] = source.choice([0.1, 0.2, 0.3])
                one = type("One", (ScriptedPlace,), {"reward_of": lambda self, run, area=areas[number]: area})
                one([]).start([runs[number]])
                target.write_outcome(runs[number], Outcome("done"))
        wanted = max(sorted(areas), key=lambda number: areas[number], default=None)
        assert read_best(sweep) == wanted


def test_a_method_that_cannot_be_tuned_is_named_and_the_rest_go_on(
    tmp_path: Path, place: type[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = sweeps_in(tmp_path)
    monkeypatch.setattr(place, "failing", ("grpo-0.1_seed3", "grpo-0.2_seed3"))
    failed = train(sweeps, ONLY, retry_failed=False)
    assert failed[1] == "grpo: no value could be trained, so it has no final runs." and len(failed) == 2
    assert place.all_started[-1] == "kl_cov_seed1"
    # Without the baseline there is a table, and no cost.
    render(sweeps, None)
    text = (sweeps.folder / "table.md").read_text()
    assert "| kl_cov | 0.1 | 2 | " in text and "grpo failed with 0.1, 0.2." in text and "| grpo | 0" not in text


def test_a_value_that_becomes_the_best_is_trained_anew(
    tmp_path: Path, place: type[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = sweeps_in(tmp_path)
    monkeypatch.setattr(place, "failing", ("grpo-0.2_seed3",))
    assert len(train(sweeps, ["grpo"], retry_failed=False)) == 1
    assert [row.value for row in read_methods(sweeps)[0].final] == [0.1, 0.1]
    monkeypatch.setattr(place, "failing", ())
    assert train(sweeps, ["grpo"], retry_failed=True) == []
    assert [row.value for row in read_methods(sweeps)[0].final] == [0.2, 0.2]
    assert place.all_started[4:] == ["grpo-0.2_seed3", "grpo_seed0", "grpo_seed1"]


def test_plans_on_unequal_terms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tuning_seed is 1, which seeds holds"):
        read_plan(small_plan(tmp_path, tuning_seed=1))
    tuned = read_plan(small_plan(tmp_path)).model_dump(mode="json")["tuned"]
    tuned["grpo"]["values"] = [0.1]
    with pytest.raises(ConfigError, match="give each the same number of values"):
        read_plan(small_plan(tmp_path, tuned=tuned))
    del tuned["kl_cov"]
    with pytest.raises(ConfigError, match="kl_cov is a method of sum_pairs and is not in tuned"):
        sweeps_in(tmp_path, tuned=tuned)


def test_a_page_without_its_comments_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- sum_pairs: end -->\n<!-- sum_pairs: begin -->\n")
    with pytest.raises(DataError, match="does not hold"):
        fill_page(page, "sum_pairs", "table", None)


def test_the_page_of_the_docs_takes_each_task(tmp_path: Path) -> None:
    page = tmp_path / "methods.md"
    page.write_text((ROOT / "docs" / "methods.md").read_text())
    for task in read_plan(PLAN).tasks:
        fill_page(page, task, f"the table of {task}\n", None)
        assert page.read_text().count(f"the table of {task}\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sum_pairs", "graph_coloring"])
def test_the_command_trains_evaluates_and_then_has_nothing_to_do(tmp_path: Path, task: str) -> None:
    plan = read_plan(PLAN).model_dump(mode="json")
    short = {**plan["tasks"][task], "only": ["kl_cov"], "tuning_steps": 1, "final_steps": 2, "reward": 0.01}
    tuned = {"kl_cov": {**plan["tuned"]["kl_cov"], "values": [0.1]}}
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({**plan, "tasks": {task: short}, "tuned": tuned, "seeds": [0]}))
    words = ["-m", "benchmarks.comparison", "--plan", str(path), "--task", task, "--folder", str(tmp_path)]
    for _ in range(2):
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, timeout=600)
    rows = list(csv.DictReader(io.StringIO((tmp_path / task / "runs.csv").read_text())))
    assert [(row["stage"], row["state"], row["seed"]) for row in rows] == [
        ("tuning", "done", "3"),
        ("final", "done", "0"),
    ]
    for row in rows:
        assert 0 < float(row["pass@1"]) < float(row["pass@8"]) <= 1
        assert 0 < float(row["reward"]) < 1 and float(row["entropy_at_reward"]) > 0 and float(row["step_s"]) > 0
    logs = list((tmp_path / task).glob("kl_cov/*/logs/*.log"))
    assert len(logs) == 2 and all(log.read_text().count("metrics      tensorboard") == 1 for log in logs)


def test_a_plan_that_is_none_and_a_folder_that_is_a_file_end_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds is \[0, 0\]: remove the seed that occurs twice"):
        read_plan(small_plan(tmp_path, seeds=[0, 0]))
    with pytest.raises(ConfigError, match=r"plan.yaml: seeds.0: Input should be greater than or equal to 0; correct"):
        read_plan(small_plan(tmp_path, seeds=[-1]))
    twice = {name: {"keys": ["optimizer.lr"], "values": [0.1, 0.1 + 1e-9]} for name in ONLY}
    with pytest.raises(ConfigError, match="grpo has .*: give values that differ in six digits"):
        read_plan(small_plan(tmp_path, tuned=twice))
    with pytest.raises(ConfigError, match=r"cannot be read \(.*No such file"):
        read_plan(tmp_path / "none.yaml")
    sweeps = TaskSweeps(read_plan(small_plan(tmp_path)), "sum_pairs", tmp_path / "plan.yaml" / "sum_pairs")
    with pytest.raises(DataError, match="cannot be .*Not a directory"):
        render(sweeps, None)
