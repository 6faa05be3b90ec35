"""The settings of a sweep, each a whole configuration, and their runs, one for each seed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacov.config import RunConfig, load_config, write_override
from megacov.config.sweep import EvaluationObjective, SweepSection
from megacov.config.sweep_search import GridSearch, ListSearch
from megacov.errors import ConfigError

_LONGEST_NAME = 80
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Setting:
    """One configuration of a sweep.

    changes: what distinguishes it from the others, by dotted key.
    config: the whole configuration, whose run.name and run.directory are without a seed.
    """

    name: str
    changes: Mapping[str, Any]
    config: RunConfig


@dataclass(frozen=True)
class SweepRun:
    """A setting with one seed."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Name of the run and of its folder; `megacov compare` takes runs that differ in it only for seeds."""
        return f"{self.setting.name}_seed{self.seed}"

    @property
    def directory(self) -> Path:
        """Folder of the run."""
        return self.setting.config.run.directory.with_name(self.name)


def fixed_settings(sweep: SweepSection) -> list[Setting]:
    """All settings of a grid or a list, each checked by the rules of configurations.

    Args:
        sweep: a sweep whose search is not Optuna's.

    Returns:
        The settings, in the order in which they run.

    Raises:
        ConfigError: a setting is impossible, and the sentence names it.
    """
    search = sweep.search
    if isinstance(search, ListSearch):
        return [make_setting(sweep, each.name, each.settings, over=each.extends) for each in search.entries]
    assert isinstance(search, GridSearch)
    combinations = [dict(zip(search.over, values, strict=True)) for values in itertools.product(*search.over.values())]
    names = _unique_names([_name_of(changes) for changes in combinations])
    return [make_setting(sweep, name, changes) for name, changes in zip(names, combinations, strict=True)]


def make_setting(sweep: SweepSection, name: str, changes: Mapping[str, Any], *, over: Iterable[Path] = ()) -> Setting:
    """Make one setting of a sweep.

    Args:
        sweep: the sweep.
        name: name of the setting.
        changes: values by dotted key, which win over the sweep's own settings.
        over: files laid over the sweep's base.

    Returns:
        The setting.

    Raises:
        ConfigError: the configuration is impossible.
    """
    own = {"run.name": name, "run.directory": str(sweep.directory / "runs" / name), "run.seed": sweep.seeds[0]}
    values = {**sweep.settings, **changes, **own}
    try:
        config = load_config(sweep.base, [write_override(*each) for each in values.items()], over=over)
        _refuse_shared(config, at_once=sweep.at_once)
        if isinstance(sweep.objective, EvaluationObjective):
            _refuse_without_evaluation(config)
    except ConfigError as error:
        raise ConfigError(f"setting {name} of sweep {sweep.name}: {error}") from None
    return Setting(name, dict(changes), config)


def runs_of(settings: Sequence[Setting], seeds: Sequence[int]) -> Iterator[SweepRun]:
    """Yield the runs of a sweep: every setting with the first seed, then every setting with the next one."""
    for seed in seeds:
        for setting in settings:
            yield SweepRun(setting, seed)


def _refuse_without_evaluation(config: RunConfig) -> None:
    """Refuse a run that would end without a score."""
    if config.evaluation.suite is None:
        raise ConfigError("objective.name is evaluation and evaluation.suite is null: name a suite in settings.")
    every, steps = config.evaluation.every, config.run.steps
    if every > steps:
        raise ConfigError(
            f"objective.name is evaluation, evaluation.every is {every} and run.steps is {steps}, so that a run would "
            "end without one: evaluate more often."
        )


def _refuse_shared(config: RunConfig, *, at_once: int) -> None:
    """Refuse what several runs would share while they train, each overwriting the weights of the others."""
    if at_once == 1:
        return
    rollout, sync = config.rollout, config.weight_sync
    shared = {
        "weight_sync.directory": sync.directory if sync.traits.keeps_copy else None,
        "rollout.addresses": rollout.addresses or None,
        "rollout.addresses_file": rollout.addresses_file,
    }
    for key, value in shared.items():
        if value is not None:
            raise ConfigError(
                f"{key} is set and at_once is {at_once}: runs that train at the same time need weights and servers of "
                "their own; leave it out, or set at_once to 1."
            )


def _name_of(changes: Mapping[str, Any]) -> str:
    """As in kl_coef_0.5-ratio_0.01."""
    ends = [key.rpartition(".")[2] for key in changes]
    parts = []
    for key, value in changes.items():
        end = key.rpartition(".")[2]
        text = value if isinstance(value, str) else json.dumps(value)
        parts.append(f"{end if ends.count(end) == 1 else key}_{text}")
    return _NOT_IN_NAMES.sub("_", "-".join(parts)).strip("_")


def _unique_names(names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names) and max(map(len, names)) <= _LONGEST_NAME:
        return list(names)
    return [f"setting_{number:04d}" for number in range(len(names))]
