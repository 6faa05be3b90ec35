"""From a grid to its results: the order of runs, the table, the CSV file, the figure, and what may be best."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from megacov.config import load_config, load_sweep
from megacov.config.sweep_search import OptunaSearch
from megacov.errors import ConfigError, DataError
from megacov.monitor.figure_style import DOTS_PER_INCH
from megacov.sweep.drive import CaughtSignals, FixedRuns, drive
from megacov.sweep.figure import figure_width, write_figure
from megacov.sweep.folder import Outcome, SweepFolder
from megacov.sweep.results import failures, find_best, read_results, render_best, render_csv, render_table
from megacov.sweep.setting import SweepRun, fixed_settings, runs_of
from tests.support.scripted_place import ScriptedPlace, reward_of

BASE = Path(__file__).parents[3] / "yaml_configs" / "runs" / "tiny_kl_cov.yaml"
OVER = {"optimizer.lr": [1e-5, 1e-4], "algorithm.loss.estimator": ["abs", "k2"]}


def load(folder: Path, *changes: str):
    path = folder / "sweep.yaml"
    sweep = {"name": "tried", "directory": str(folder / "sweep"), "base": str(BASE), "seeds": [1, 5]}
    objective = {"name": "reward", "last_steps": 1}
    settings = {"run.steps": 2}
    search = {"name": "grid", "over": OVER}
    path.write_text(json.dumps({**sweep, "settings": settings, "search": search, "objective": objective}))
    return load_sweep(path, changes)


class Unlucky(ScriptedPlace):
    """Runs of which one fails."""

    def poll(self, run: SweepRun) -> Outcome | None:
        if run.name == "lr_0.0001-estimator_abs_seed5":
            return Outcome("failed", 7, 'a gradient of "NaN",\nin rank 1', 3.0)
        return super().poll(run)


def train(sweep, place: ScriptedPlace) -> Sequence:
    folder, settings = SweepFolder(sweep.directory), fixed_settings(sweep)
    with folder.held():
        for each in settings:
            folder.keep_setting(each)
        runs = FixedRuns(runs_of(settings, sweep.seeds), settings)
        drive(runs, place, folder, CaughtSignals(), at_once=3, poll_s=0.0, tell=lambda *_: None)
    return read_results(sweep, folder, settings)


def test_results_of_a_grid(tmp_path):
    sweep = load(tmp_path)
    place = Unlucky([])
    results = train(sweep, place)
    names = [f"lr_{lr}-estimator_{estimator}" for lr in ("1e-05", "0.0001") for estimator in ("abs", "k2")]
    assert place.started == [f"{name}_seed{seed}" for seed in (1, 5) for name in names]
    assert [each.setting.name for each in results] == names

    rows = list(csv.DictReader(io.StringIO(render_csv(sweep, results))))
    assert len(rows) == 8
    for row, each in zip(rows, (each for result in results for each in result.runs), strict=True):
        if row["state"] == "done":
            assert float(row["value"]) == pytest.approx(reward_of(each.run), rel=1e-6)
        assert row["optimizer.lr"] == json.dumps(each.run.setting.config.optimizer.lr)
        assert row["algorithm.loss.estimator"] == each.run.setting.config.algorithm.loss.estimator
    (failed,) = [row for row in rows if row["state"] == "failed"]
    assert failed["reason"] == 'a gradient of "NaN",\nin rank 1' and failed["exit_code"] == "7"
    assert failures(results) == {"lr_0.0001-estimator_abs_seed5": '(7) a gradient of "NaN",\nin rank 1'}

    # 1e-4 is best. With `abs` a seed of it has failed, so what is left of it is no longer comparable.
    assert results[2].value is None and len(results[2].values()) == 1
    best = find_best(results)
    assert best is results[3]
    path = tmp_path / "best.yaml"
    path.write_text(render_best(sweep, best))
    config = load_config(path)
    assert config.optimizer.lr == 1e-4 and config.algorithm.loss.estimator == "k2" and config.run.steps == 2
    assert (config.run.name, str(config.run.directory), config.run.seed) == ("tried_best", "runs/tried_best", 1)

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_table(sweep, results))
    text = console.export_text()
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith("lr_")] == names
    assert "1 done, 1 failed" in text and "reward, last 1 steps" in text
    write_figure(sweep, results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_once_all_is_over_only_failed_runs_start_again_and_only_on_request(tmp_path):
    sweep, place = load(tmp_path), Unlucky([])
    train(sweep, place)
    del place.started[:]
    folder, settings = SweepFolder(sweep.directory), fixed_settings(sweep)
    results = train(sweep, place)
    assert place.started == [] and len(failures(results)) == 1
    for run in runs_of(settings, sweep.seeds):
        folder.forget_failure(run)
    # The scripted run has come to its end this time, as its folder says.
    assert failures(train(sweep, place)) == {}


def test_a_sweep_may_grow_and_may_not_change_under_a_name(tmp_path):
    train(load(tmp_path), ScriptedPlace([]))
    place = ScriptedPlace([])
    train(
        load(tmp_path, "seeds=[1,5,6]", "search.over={optimizer.lr: [1e-4, 1e-3], algorithm.loss.estimator: [k2]}"),
        place,
    )
    assert sorted(place.started) == [
        "lr_0.0001-estimator_k2_seed6",
        *(f"lr_0.001-estimator_k2_seed{seed}" for seed in (1, 5, 6)),
    ]
    with pytest.raises(DataError, match=r"run.steps 2, and the sweep now has 3 for the same setting: restore it, or"):
        train(load(tmp_path, "settings={run.steps: 3}"), place)


def test_impossible_settings_and_shared_servers_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(
        ConfigError, match=r"setting lr_-1.0-estimator_abs of sweep tried: optimizer.lr is -1.0: it must be"
    ):
        fixed_settings(load(tmp_path, "search.over={optimizer.lr: [1e-4, -1.0]}"))
    servers = "settings={rollout.engine: sglang, rollout.addresses: ['http://127.0.0.1:30000']}"
    assert len(fixed_settings(load(tmp_path, servers))) == 4
    with pytest.raises(ConfigError, match=r"rollout.addresses is set and at_once is 2"):
        fixed_settings(load(tmp_path, servers, "at_once=2"))


def test_a_folder_that_holds_something_else_or_is_damaged_is_refused(tmp_path):
    sweep = load(tmp_path)
    results = train(sweep, ScriptedPlace([]))
    outcome = sweep.directory / "outcomes" / f"{results[0].runs[0].run.name}.json"
    outcome.write_text("{")
    with pytest.raises(DataError, match=r"_seed1.json cannot be read \(.*\): remove it"):
        read_results(sweep, SweepFolder(sweep.directory), fixed_settings(sweep))
    for seconds in ('"x"', "null", "[1]"):
        outcome.write_text(f'{{"kind": "done", "code": 0, "reason": "", "seconds": {seconds}}}')
        with pytest.raises(DataError, match="is not what a sweep writes: remove it"):
            read_results(sweep, SweepFolder(sweep.directory), fixed_settings(sweep))
    (sweep.directory / "config.yaml").write_text("run: {}")
    with pytest.raises(DataError, match="holds a run and no sweep"), SweepFolder(sweep.directory).held():
        pass
    with pytest.raises(DataError, match="cannot be written: File name too long"), SweepFolder(Path("x" * 300)).held():
        pass


def test_text_in_values_is_shown_as_it_is(tmp_path):
    values = ["$x{$", "[/b]", "a\x1b[31m", "long " * 30]
    sweep = load(tmp_path, f"search.over={json.dumps({'data.answer_field': values})}", "seeds=[1]")
    results = train(sweep, ScriptedPlace([]))
    write_figure(sweep, results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    space = [{"key": "data.answer_field", "choices": values}]
    study = sweep.model_copy(update={"search": OptunaSearch.model_validate({"trials": 1, "space": space})})
    console = Console(width=200)
    with console.capture() as shown:
        console.print(render_table(study, results))
    assert "answer_field=$x{$ " in shown.get() and "answer_field=[/b] " in shown.get()
    assert "answer_field=a\\x1b[31m" in shown.get() and "\x1b" not in shown.get()


def test_a_reward_that_is_not_reached_leaves_no_entropy(tmp_path):
    over = json.dumps({"algorithm.loss.estimator": ["abs"]})
    sweep = load(tmp_path, f"search.over={over}", "objective={name: entropy_at_reward, reward: 0.7}")
    results = train(sweep, ScriptedPlace([]))  # whose moving averages end at 3/4 of 0.75 and of 1, and of a little more
    console = Console(width=200)
    with console.capture() as shown:
        console.print(render_table(sweep, results))
    (short,) = [line for line in shown.get().splitlines() if "not reached, -0.1" in line]
    assert short.split()[0] == "lr_1e-05-estimator_abs"
    assert "# entropy at reward 0.7: not reached, -0.1" in render_best(sweep, results[0])
    assert "# entropy at reward 0.7: 1.25, mean" in render_best(sweep, results[1])


def test_a_picture_of_thousands_of_settings_has_a_width_that_can_be_written():
    names = [f"method_{number}" for number in range(3000)]
    assert figure_width([("setting", names)]) * DOTS_PER_INCH < 2**16
    assert figure_width([("a", names), ("b", names)]) * DOTS_PER_INCH < 2**16
    assert figure_width([("a", names[:10]), ("b", [0.1, 0.2])]) == pytest.approx(2 * 4.2 + 0.6)
