"""A search by Optuna: its trials are the settings of a sweep, and its storage is a SQLite file in the sweep's folder.

A trial whose end the file does not hold is continued after a kill, from the outcomes of its runs. The storage is not
Optuna's journal file: a line that is cut off there, as by a full disk, makes the whole study unreadable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import sqlalchemy

from megacov.config.sweep import SweepSection
from megacov.config.sweep_search import Dimension, HalvingPruner, MedianPruner, OptunaSearch, PercentilePruner
from megacov.errors import ConfigError, DataError
from megacov.sweep.folder import Outcome, SweepFolder
from megacov.sweep.setting import Setting, SweepRun, make_setting
from megacov.sweep.value import mean_value, value_of, values_by_step

STUDY_NAME = "study.db"
_LOOK_S = 5.0
_PROBLEM, _SPACE = "problem", "space"


@dataclass
class _Active:
    """A trial that is not over: its runs so far, one seed after the other."""

    trial: optuna.trial.Trial
    setting: Setting
    values: list[float] = field(default_factory=list)
    running: SweepRun | None = None
    reported: int = 0
    looked: float = 0.0


class StudyRuns:
    """The runs of a study. The seeds of a trial run one after the other, and several trials at the same time."""

    def __init__(self, sweep: SweepSection, folder: SweepFolder) -> None:
        """Open the study, or begin it.

        Args:
            sweep: a sweep whose search is Optuna's.
            folder: its folder, held by this process.

        Raises:
            ConfigError: no corner of the space is a configuration, or an earlier trial is none any more.
            DataError: the file cannot be read or written, or holds the study of another space.
        """
        assert isinstance(sweep.search, OptunaSearch)
        self._sweep, self._folder, self._search = sweep, folder, sweep.search
        check_corners(sweep)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path = folder.path / STUDY_NAME
        with self._storage():
            url = sqlalchemy.URL.create("sqlite", database=str(self._path.absolute()))
            self._study = optuna.create_study(
                storage=url.render_as_string(),
                study_name="sweep",
                load_if_exists=True,
                direction="maximize",
                pruner=_pruner(self._search),
            )
            self._keep_space()
            self._num_asked = 0
            self._active: dict[str, _Active] = {}
            self.settings: list[Setting] = []
            """Settings of all trials so far, in their order, without those that are no configuration."""
            self.problems: dict[str, str] = {}
            """Why a trial has no configuration or no value, by its name."""
            for trial in self._study.get_trials(deepcopy=False):
                self._recall(trial)

    def next(self) -> SweepRun | None:
        """The next run to start; None while all trials that may begin have a run that trains, or are over."""
        for active in list(self._active.values()):
            if active.running is None:
                active.running = SweepRun(active.setting, self._sweep.seeds[len(active.values)])
                return active.running
        while self._num_asked < self._search.trials:
            with self._storage():
                # A sampler of its own for each trial: one seed would give the first values again after a restart.
                self._study.sampler = _sampler(self._search, number=self._num_asked)
                trial = self._study.ask()
                begun = self._begin(trial)
            if begun is not None:
                begun.running = SweepRun(begun.setting, self._sweep.seeds[0])
                return begun.running
        return None

    def note(self, run: SweepRun, outcome: Outcome) -> None:
        """Report the values of a run that is over; tell Optuna the trial's end after its last run.

        Args:
            run: a run that `next` has returned.
            outcome: how it ended.

        Raises:
            DataError: the storage refuses it.
        """
        active = self._active[run.setting.name]
        active.running = None
        with self._storage():
            if outcome.kind == "done":
                self._report(active, run)
                found = value_of(run.directory, self._sweep.objective)
                if found.value is None:
                    self._fail(active, found.problem)
                    return
                active.values.append(found.value)
                if len(active.values) == len(self._sweep.seeds):
                    self._end(active, mean_value(active.values, self._sweep.objective))
            elif outcome.kind == "pruned":
                self._end(active, state=optuna.trial.TrialState.PRUNED)
            else:
                self._fail(active, "")

    def is_hopeless(self, run: SweepRun) -> bool:
        """Report the newest steps of a run, and ask the pruner.

        Args:
            run: a run that trains.

        Returns:
            Whether the pruner ends its trial.

        Raises:
            DataError: the storage refuses it.
        """
        active = self._active[run.setting.name]
        if self._search.pruner.name == "none" or time.monotonic() < active.looked + _LOOK_S:
            return False
        active.looked = time.monotonic()
        with self._storage():
            return self._report(active, run)

    def _report(self, active: _Active, run: SweepRun) -> bool:
        """Report all new steps; True if the pruner ends the trial. Steps of later seeds follow those of the first."""
        if self._search.pruner.name == "none":
            return False
        before = len(active.values) * run.setting.config.run.steps
        for step, value in values_by_step(run.directory, self._sweep.objective, after=active.reported - before):
            active.reported = before + step
            active.trial.report(value, active.reported)
            if active.trial.should_prune():
                return True
        return False

    def _recall(self, trial: optuna.trial.FrozenTrial) -> None:
        """Take up a trial of an earlier call."""
        if trial.state == optuna.trial.TrialState.WAITING:
            return  # somebody has enqueued it, and `ask` returns it next
        if trial.state == optuna.trial.TrialState.RUNNING:
            # The same as for a new trial: parameters that a kill has kept from the file are drawn now.
            self._study.sampler = _sampler(self._search, number=trial.number)
            active = self._begin(optuna.trial.Trial(self._study, trial._trial_id))
            if active is not None:
                active.reported = max(trial.intermediate_values, default=0)
            return
        self._num_asked += 1
        name = _name(trial.number)
        if _PROBLEM in trial.user_attrs:
            self.problems[name] = trial.user_attrs[_PROBLEM]
        if self._folder.has_setting(name):
            setting = make_setting(self._sweep, name, {each.key: trial.params[each.key] for each in self._search.space})
            self._folder.keep_setting(setting)
            self.settings.append(setting)

    def _begin(self, trial: optuna.trial.Trial) -> _Active | None:
        self._num_asked += 1
        changes = {each.key: _suggest(trial, each) for each in self._search.space}
        name = _name(trial.number)
        try:
            setting = make_setting(self._sweep, name, changes)
        except ConfigError as error:
            self._tell_problem(trial, name, str(error))
            return None
        self._folder.keep_setting(setting)
        self.settings.append(setting)
        self._active[name] = _Active(trial, setting)
        return self._active[name]

    def _fail(self, active: _Active, problem: str) -> None:
        del self._active[active.setting.name]
        self._tell_problem(active.trial, active.setting.name, problem)

    def _tell_problem(self, trial: optuna.trial.Trial, name: str, problem: str) -> None:
        if problem:
            self.problems[name] = problem
            trial.set_user_attr(_PROBLEM, problem)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _end(
        self, active: _Active, value: float | None = None, *, state: optuna.trial.TrialState | None = None
    ) -> None:
        del self._active[active.setting.name]
        self._study.tell(active.trial, value, state=state)

    def _keep_space(self) -> None:
        """Remember what Optuna's values rest on, or compare it."""
        sweep = self._sweep
        now = {
            "search.space": [each.model_dump(mode="json", exclude_defaults=True) for each in self._search.space],
            "objective": sweep.objective.model_dump(mode="json"),
            "seeds": list(sweep.seeds),
        }
        before = self._study.user_attrs.get(_SPACE)
        if before is None:
            self._study.set_user_attr(_SPACE, now)
            return
        for key, value in now.items():
            if before[key] != value:
                raise DataError(
                    f"{self._path} was begun with {key} {json.dumps(before[key])}, and the sweep now has "
                    f"{json.dumps(value)}: restore it, or choose another directory."
                )

    @contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise DataError(f"{self._path} cannot be read or written: {reason}.") from error


def check_corners(sweep: SweepSection) -> list[Setting]:
    """Make the settings of the smallest and of the largest values, as a misspelt key would fail every trial.

    Args:
        sweep: a sweep whose search is Optuna's.

    Returns:
        Those of the two that are configurations.

    Raises:
        ConfigError: neither is.
    """
    assert isinstance(sweep.search, OptunaSearch)
    found, problems = [], []
    for name, place in (("smallest", 0), ("largest", -1)):
        changes = {each.key: _ends(each)[place] for each in sweep.search.space}
        try:
            found.append(make_setting(sweep, name, changes))
        except ConfigError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return found


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    if dimension.choices is not None:
        return dimension.choices
    assert dimension.low is not None and dimension.high is not None
    ends = dimension.low, dimension.high
    return tuple(int(end) for end in ends) if dimension.whole else ends


def _name(number: int) -> str:
    return f"trial_{number:04d}"


def _sampler(search: OptunaSearch, *, number: int) -> optuna.samplers.BaseSampler:
    # Seeds that follow each other have similar first values, unless they are hashed.
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.sampler.startup_trials)


def _pruner(search: OptunaSearch) -> optuna.pruners.BasePruner:
    pruner = search.pruner
    if isinstance(pruner, MedianPruner):
        return optuna.pruners.MedianPruner(pruner.startup_trials, pruner.warmup_steps)
    if isinstance(pruner, PercentilePruner):
        return optuna.pruners.PercentilePruner(pruner.percentile, pruner.startup_trials, pruner.warmup_steps)
    if isinstance(pruner, HalvingPruner):
        return optuna.pruners.SuccessiveHalvingPruner(pruner.min_steps, pruner.reduction_factor)
    return optuna.pruners.NopPruner()


def _suggest(trial: optuna.trial.Trial, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    low, high = dimension.low, dimension.high
    assert low is not None and high is not None
    if dimension.whole:
        return trial.suggest_int(dimension.key, int(low), int(high), step=int(dimension.step or 1), log=dimension.log)
    return trial.suggest_float(dimension.key, low, high, step=dimension.step, log=dimension.log)
