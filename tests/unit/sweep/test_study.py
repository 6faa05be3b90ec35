"""A search by Optuna: what is asked and learnt, and that a kill at any event costs and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from megacov.config import load_config, load_sweep
from megacov.config.sweep import SweepSection
from megacov.errors import ConfigError, DataError
from megacov.monitor.tensorboard import MetricWriter
from megacov.sweep.drive import CaughtSignals, drive
from megacov.sweep.folder import Outcome, SweepFolder
from megacov.sweep.results import find_best, read_results, render_best
from megacov.sweep.setting import SweepRun
from megacov.sweep.study import StudyRuns
from tests.support.scripted_place import ScriptedPlace, reward_of

BASE = Path(__file__).parents[3] / "yaml_configs" / "runs" / "tiny_grpo.yaml"
LR = {"key": "optimizer.lr", "low": 1e-6, "high": 1e-2, "log": True}
RANDOM, TPE = {"name": "random"}, {"name": "tpe", "startup_trials": 3}


def make_sweep(folder: Path, *, seeds: tuple[int, ...] = (0,), **search: object) -> SweepSection:
    path = folder / "sweep.yaml"
    settings = {"run.steps": 4}
    found = {"name": "optuna", "trials": 4, "space": [LR], "sampler": RANDOM, **search}
    sweep = {"name": "tried", "directory": str(folder / "sweep"), "base": str(BASE), "settings": settings}
    path.write_text(json.dumps({**sweep, "seeds": seeds, "search": found, "objective": {"name": "reward"}}))
    return load_sweep(path)


def go(sweep: SweepSection, place: ScriptedPlace, tell: Callable[..., None] = lambda *_: None) -> StudyRuns:
    folder = SweepFolder(sweep.directory)
    with folder.held():
        source = StudyRuns(sweep, folder)
        drive(source, place, folder, CaughtSignals(), at_once=1, poll_s=0.0, tell=tell)
    return source


def trials_of(sweep: SweepSection) -> list[tuple[str, dict[str, object], float | None]]:
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep.directory / 'study.db'}")
    return [(trial.state.name, trial.params, trial.value) for trial in study.get_trials()]


class Killed(BaseException):
    """In place of a signal that no handler sees."""


def test_a_kill_at_any_event_repeats_no_run_and_loses_none(tmp_path):
    (tmp_path / "whole").mkdir()
    alone: list[str] = []
    whole = make_sweep(tmp_path / "whole", seeds=(0, 1), trials=2)
    go(whole, ScriptedPlace(alone))
    assert alone == [f"trial_{trial:04d}_seed{seed}" for trial in (0, 1) for seed in (0, 1)]

    for number in (1, 5, 6, 11):  # of the twelve: each kind of event, in each trial and with each seed
        folder = tmp_path / str(number)
        folder.mkdir()
        sweep = make_sweep(folder, seeds=(0, 1), trials=2)
        started: list[str] = []
        events = 0

        def kill(_what: str, number: int = number) -> None:
            nonlocal events
            events += 1
            if events == number + 1:
                raise Killed

        with pytest.raises(Killed):
            go(sweep, ScriptedPlace(started, kill))
        go(sweep, ScriptedPlace(started))
        assert started == alone
        assert trials_of(sweep) == trials_of(whole)


def test_the_storage_survives_a_real_kill(tmp_path):
    sweep = make_sweep(tmp_path, trials=3)

    def kill(_run: SweepRun, what: str) -> None:
        if what == "done":
            os.kill(os.getpid(), signal.SIGKILL)  # before the study is asked again, with a file that is open

    for _ in range(3):
        child = os.fork()
        if child == 0:
            go(sweep, ScriptedPlace([]), kill)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    go(sweep, ScriptedPlace([]))
    trials = trials_of(sweep)
    assert [state for state, _, _ in trials] == ["COMPLETE"] * 3
    assert len({params["optimizer.lr"] for _, params, _ in trials}) == 3


def test_optuna_learns_the_mean_over_seeds_and_the_best_is_a_configuration(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(0, 2), trials=6, sampler=TPE)
    source = go(sweep, ScriptedPlace([]))
    results = read_results(sweep, SweepFolder(sweep.directory), source.settings)
    for (_, params, value), result in zip(trials_of(sweep), results, strict=True):
        expected = [reward_of(SweepRun(result.setting, seed)) * (1 + 2 + 3 + 4) / 16 for seed in (0, 2)]
        assert value == pytest.approx(sum(expected) / 2, rel=1e-6) == result.value
        assert result.setting.config.optimizer.lr == params["optimizer.lr"]
    best = find_best(results)
    assert best is not None and best.value == max(value for _, _, value in trials_of(sweep))
    path = tmp_path / "best.yaml"
    path.write_text(render_best(sweep, best))
    assert load_config(path).optimizer == best.setting.config.optimizer


def test_the_sampler_learns_after_its_first_trials(tmp_path):
    class Reversed(ScriptedPlace):
        """Good where the other is bad."""

        def reward_of(self, run: SweepRun) -> float:
            return -super().reward_of(run)

    params = []
    for name, place in (("up", ScriptedPlace([])), ("down", Reversed([]))):
        (tmp_path / name).mkdir()
        sweep = make_sweep(tmp_path / name, trials=5, sampler=TPE)
        go(sweep, place)
        params.append([each["optimizer.lr"] for _, each, _ in trials_of(sweep)])
    assert params[0][:3] == params[1][:3] and len(set(params[0])) == 5
    assert params[0][3:] != params[1][3:]


class StagedPlace(ScriptedPlace):
    """Runs whose end is one look away, so that a pruner sees them train."""

    def start_one(self, run: SweepRun) -> None:
        super().start_one(run)
        (run.directory / "finished.json").rename(run.directory / "later.json")

    def poll(self, run: SweepRun) -> Outcome | None:
        outcome = super().poll(run)
        if outcome is None:
            (run.directory / "later.json").rename(run.directory / "finished.json")
        return outcome


def test_a_pruner_ends_trials_that_lag_behind(tmp_path):
    pruner = {"name": "median", "startup_trials": 2}
    sweep = make_sweep(tmp_path, trials=8, pruner=pruner, seeds=(0, 1))
    place = StagedPlace([])
    source = go(sweep, place)
    states = [state for state, _, _ in trials_of(sweep)]
    assert "PRUNED" not in states[:2] and 0 < states.count("PRUNED") < 6
    pruned = [f"trial_{number:04d}_seed0" for number, state in enumerate(states) if state == "PRUNED"]
    assert place.stopped == pruned
    # A pruned trial is worse than the median of those before it, and its second seed is never trained.
    results = read_results(sweep, SweepFolder(sweep.directory), source.settings)
    for number, result in enumerate(results):
        if states[number] == "PRUNED":
            before = sorted(reward_of(each.runs[0].run) for each in results[:number])
            assert reward_of(result.runs[0].run) < before[len(before) // 2]
            assert [each.state for each in result.runs] == ["pruned"]
    # Continued, the study holds the same: a pruned trial is over.
    go(sweep, place)
    assert [state for state, _, _ in trials_of(sweep)] == states and len(place.started) == len(set(place.started))


def test_trials_that_are_no_run_or_fail_are_named_and_the_others_go_on(tmp_path):
    # 64 x 8 samples cannot be divided by 3, 5, 6 or 7.
    space = [{"key": "batch.updates_per_rollout", "low": 1, "high": 8, "whole": True}]
    sweep = make_sweep(tmp_path, trials=10, space=space)
    source = go(sweep, ScriptedPlace([]))
    states = trials_of(sweep)
    for number, (state, params, _) in enumerate(states):
        fits = 512 % params["batch.updates_per_rollout"] == 0
        assert (state == "COMPLETE") == fits
        assert (f"trial_{number:04d}" in source.problems) == (not fits)
    assert {state for state, _, _ in states} == {"COMPLETE", "FAIL"}
    assert go(sweep, ScriptedPlace([])).problems == source.problems


def test_mistakes_end_in_a_sentence(tmp_path):
    misspelt = [{"key": "optimizer.lrr", "low": 0.1, "high": 1.0}]
    with pytest.raises(ConfigError, match=r"setting smallest of sweep tried: optimizer.lrr is not a setting"):
        go(make_sweep(tmp_path, space=misspelt), ScriptedPlace([]))
    go(make_sweep(tmp_path, trials=1), ScriptedPlace([]))
    with pytest.raises(DataError, match=r"study.db was begun with seeds \[0\], and the sweep now has \[0, 1\]"):
        go(make_sweep(tmp_path, trials=1, seeds=(0, 1)), ScriptedPlace([]))
    (tmp_path / "sweep" / "study.db").write_text("no database" * 1000)
    with pytest.raises(DataError, match=r"study.db cannot be read or written: .*file is not a database"):
        go(make_sweep(tmp_path, trials=1), ScriptedPlace([]))


def test_a_run_without_a_value_fails_its_trial(tmp_path):
    class Silent(ScriptedPlace):
        def start_one(self, run: SweepRun) -> None:
            super().start_one(run)
            for path in (run.directory / "tensorboard").iterdir():
                path.unlink()
            MetricWriter(run.directory / "tensorboard").close()

    source = go(make_sweep(tmp_path, trials=1), Silent([]))
    assert "has no step with both reward/mean and entropy/token_mean" in source.problems["trial_0000"]
