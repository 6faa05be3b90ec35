"""Where the settings of a sweep come from: a grid, a list, or Optuna."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)

from megacov.config.messages import join_names, show
from megacov.config.section import Section

MAX_RUNS = 10_000

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_-]+)+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_NAME = 80
_MOST_VALUES = 1e9
# The sweep gives each run its own.
_OWN_KEYS = ("run.name", "run.directory", "run.seed")


def check_name(name: str) -> str:
    """Return a name of a sweep or of a setting; raises ValueError unless files and folders can have it."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"start it with a letter or digit, then use letters, digits, dots, dashes and underscores, {_LONGEST_NAME} "
            "characters at most."
        )
    if name.startswith("tmp_"):
        raise ValueError("files that are being written begin with tmp_: choose another name.")
    return name


Name = Annotated[str, AfterValidator(check_name)]


def check_key(key: str) -> None:
    """Raise ValueError unless a key is the dotted key of a setting that a sweep may change."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{show(key)} is no dotted key of a setting, such as algorithm.loss.kl_coef: correct it.")
    if key in _OWN_KEYS:
        raise ValueError(
            f"{key} is set by the sweep for each run: remove it{'; seeds are in seeds' * ('seed' in key)}."
        )


class GridSearch(Section):
    """Every combination of some values of some settings."""

    name: Literal["grid"] = "grid"
    over: dict[str, tuple[JsonValue, ...]] = Field(min_length=1)
    """Values of each setting, by its dotted key; the last key varies fastest."""

    @model_validator(mode="after")
    def _values_differ(self) -> GridSearch:
        for key, values in self.over.items():
            check_key(key)
            if not values or any(value in values[:at] for at, value in enumerate(values)):
                raise ValueError(f"over.{key} is {show(list(values))}: give one or more values, none of them twice.")
        return self

    @property
    def num_settings(self) -> int:
        """Number of combinations."""
        return math.prod(len(values) for values in self.over.values())


class NamedSetting(Section):
    """One entry of a list."""

    name: Name
    """Name in tables, figures and folders."""
    extends: tuple[Path, ...] = ()
    """Files laid over the sweep's base, such as an algorithm; relative to the sweep's file."""
    settings: dict[str, JsonValue] = Field({})
    """Further changes, by dotted key."""

    @field_validator("settings")
    @classmethod
    def _keys_are_settings(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key in settings:
            check_key(key)
        return settings


class ListSearch(Section):
    """A list of named settings, such as the methods of a comparison."""

    name: Literal["list"] = "list"
    entries: tuple[NamedSetting, ...] = Field(min_length=1)
    """The settings, in the order of the table."""

    @model_validator(mode="after")
    def _names_differ(self) -> ListSearch:
        names = [entry.name for entry in self.entries]
        if len(set(names)) < len(names):
            raise ValueError(f"two entries have the same name: rename one of {join_names(dict.fromkeys(names))}.")
        return self

    @property
    def num_settings(self) -> int:
        """Number of entries."""
        return len(self.entries)


class Dimension(Section):
    """A setting that Optuna chooses: from a range, or from choices."""

    key: str
    """Dotted key of the setting."""
    low: StrictFloat | None = Field(None, ge=-1e15, le=1e15)
    """Smallest value. [unit of the setting]"""
    high: StrictFloat | None = Field(None, ge=-1e15, le=1e15)
    """Largest value. [unit of the setting]"""
    whole: StrictBool = False
    """Only whole numbers."""
    log: StrictBool = False
    """Sample evenly on a logarithmic scale."""
    step: StrictFloat | None = Field(None, gt=0)
    """Distance between possible values, from low on. [unit of the setting]"""
    choices: tuple[JsonValue, ...] | None = None
    """Possible values, instead of a range."""

    @field_validator("key")
    @classmethod
    def _key_is_a_setting(cls, key: str) -> str:
        check_key(key)
        return key

    @model_validator(mode="after")
    def _range_or_choices(self) -> Dimension:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None or self.whole:
                raise ValueError(f"{self.key} has choices and a range: keep one of them.")
            if not self.choices or any(value in self.choices[:at] for at, value in enumerate(self.choices)):
                raise ValueError(f"choices is {show(list(self.choices))}: give one or more values, none of them twice.")
            if any(isinstance(value, dict | list) for value in self.choices):
                raise ValueError(
                    "choices holds a list or a section, and Optuna chooses among single values: name them."
                )
            return self
        if self.low is None or self.high is None:
            raise ValueError(f"{self.key} needs low and high, or choices: add them.")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: low must be smaller.")
        if self.log and (self.low <= 0 or self.step is not None):
            other = f"low is {self.low}" if self.low <= 0 else f"step is {self.step}"
            raise ValueError(f"log is true and {other}: a logarithmic scale begins above 0 and has no step.")
        if self.step is not None and (self.high - self.low) / self.step > _MOST_VALUES:
            raise ValueError(
                f"step is {self.step}, of which {_MOST_VALUES:g} do not lead from {self.low} to {self.high}: raise it."
            )
        for name in ("low", "high", "step") if self.whole else ():
            value = getattr(self, name)
            if value is not None and not value.is_integer():
                raise ValueError(f"whole is true and {name} is {value}: make it a whole number.")
        return self


class TpeSampler(Section):
    """Tree-structured Parzen estimator: looks where good trials were."""

    name: Literal["tpe"] = "tpe"
    startup_trials: StrictInt = Field(10, ge=1)
    """Trials drawn at random before the estimator begins. [trials]"""


class RandomSampler(Section):
    """Draws independently of earlier trials."""

    name: Literal["random"] = "random"


class NoPruner(Section):
    """No trial ends early."""

    name: Literal["none"] = "none"


class MedianPruner(Section):
    """Ends a trial that is worse than the median of earlier ones at the same step."""

    name: Literal["median"] = "median"
    startup_trials: StrictInt = Field(5, ge=0)
    """Finished trials before any is ended. [trials]"""
    warmup_steps: StrictInt = Field(0, ge=0)
    """Steps of a run before it may be ended. [steps]"""


class PercentilePruner(Section):
    """Ends a trial that is not among the best share of earlier ones at the same step."""

    name: Literal["percentile"] = "percentile"
    percentile: StrictFloat = Field(25.0, gt=0, lt=100)
    """Share that is kept. [percent]"""
    startup_trials: StrictInt = Field(5, ge=0)
    """Finished trials before any is ended. [trials]"""
    warmup_steps: StrictInt = Field(0, ge=0)
    """Steps of a run before it may be ended. [steps]"""


class HalvingPruner(Section):
    """Successive halving, asynchronous: the best share of the trials at each rung goes on to the next."""

    name: Literal["successive_halving"] = "successive_halving"
    min_steps: StrictInt = Field(1, ge=1)
    """Steps before the first rung. [steps]"""
    reduction_factor: StrictInt = Field(4, ge=2)
    """One of so many trials goes on, for so many times the steps. [ratio]"""


class OptunaSearch(Section):
    """Optuna chooses settings by the results of earlier ones. Needs the extra `megacov[sweep]`."""

    name: Literal["optuna"] = "optuna"
    space: tuple[Dimension, ...] = Field(min_length=1)
    """The settings that are chosen."""
    trials: StrictInt = Field(ge=1, le=MAX_RUNS)
    """Settings to try, failed and pruned ones included. [trials]"""
    sampler: Annotated[TpeSampler | RandomSampler, Field(discriminator="name")] = TpeSampler()
    """How the next setting is chosen."""
    pruner: Annotated[NoPruner | MedianPruner | PercentilePruner | HalvingPruner, Field(discriminator="name")] = (
        NoPruner()
    )
    """Whether trials may end before their last step."""
    seed: StrictInt = Field(0, ge=0, lt=2**31)
    """Determines the sampler's random numbers. [seed]"""

    @model_validator(mode="after")
    def _space_fits(self) -> OptunaSearch:
        keys = [dimension.key for dimension in self.space]
        if len(set(keys)) < len(keys):
            raise ValueError(f"space holds a key twice: remove one of {join_names(dict.fromkeys(keys))}.")
        return self

    @property
    def num_settings(self) -> int:
        """Number of trials."""
        return self.trials
