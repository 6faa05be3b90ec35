"""Settings of a sweep: which configurations to train, with which seeds, and what makes one better than another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StrictFloat, StrictInt, field_validator, model_validator

from megacov.config.messages import join_names, show
from megacov.config.section import Section
from megacov.config.sweep_search import MAX_RUNS, GridSearch, ListSearch, Name, OptunaSearch, check_key


class RewardObjective(Section):
    """The mean reward at the end of a run."""

    name: Literal["reward"] = "reward"
    last_steps: StrictInt | None = Field(10, ge=1)
    """Last logged steps whose mean counts; null takes all of them: the area under the curve of the reward. [steps]"""


class EntropyObjective(Section):
    """The entropy that is left where the reward first reaches a value."""

    name: Literal["entropy_at_reward"] = "entropy_at_reward"
    reward: StrictFloat
    """Mean reward to reach, in the moving average of `megacov compare`. [reward]"""


class EvaluationObjective(Section):
    """A score of the run's last evaluation."""

    name: Literal["evaluation"] = "evaluation"
    set: Name
    """Set of the suite that evaluation.suite names."""
    score: str
    """Score of the set, such as avg@8 or pass@4."""

    @field_validator("score")
    @classmethod
    def _is_a_score(cls, score: str) -> str:
        if not re.fullmatch(r"(avg|pass|maj)@[1-9][0-9]*", score):
            raise ValueError("name avg, pass or maj with its number of samples, as in avg@8.")
        return score


Objective = RewardObjective | EntropyObjective | EvaluationObjective


class SweepSection(Section):
    """A sweep: runs that differ in some settings."""

    name: Name
    """Name of the sweep."""
    directory: Path = Field(default_factory=lambda values: Path("runs", values.get("name", "sweep")))
    """Folder to which the sweep writes everything; by default runs/NAME."""
    base: Path
    """Configuration that all runs start from; relative to the sweep's file."""
    settings: dict[str, JsonValue] = Field({})
    """Changes to it that all runs share, by dotted key."""
    seeds: tuple[Annotated[StrictInt, Field(ge=0, lt=2**31)], ...] = Field((0,), min_length=1)
    """Each setting is trained once with each of these seeds."""
    search: Annotated[GridSearch | ListSearch | OptunaSearch, Field(discriminator="name")]
    """Where the settings come from."""
    objective: Annotated[Objective, Field(discriminator="name")] = RewardObjective()
    """What makes a setting good; larger is better, and the mean over seeds counts."""
    at_once: StrictInt = Field(1, ge=1, le=MAX_RUNS)
    """Runs that train at the same time. [runs]"""
    timeout_s: StrictFloat | None = Field(None, gt=0)
    """Longest time of a run on this machine from its last start; longer is a failure. Null waits for ever. [s]"""

    @model_validator(mode="after")
    def _fits(self) -> SweepSection:
        for key in self.settings:
            check_key(key)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {show(list(self.seeds))}: remove the seed that occurs twice.")
        if self.num_runs > MAX_RUNS:
            raise ValueError(
                f"the sweep has {self.num_runs} runs and may have {MAX_RUNS}: give fewer values, or fewer seeds."
            )
        is_list = isinstance(self.search, ListSearch)  # whose entries win
        twice = [key for key in self.settings if key in self.searched_keys and not is_list]
        if twice:
            raise ValueError(f"settings and search both set {join_names(twice)}: remove it from one of them.")
        return self

    @property
    def num_runs(self) -> int:
        """Number of runs of the whole sweep."""
        return self.search.num_settings * len(self.seeds)

    @property
    def searched_keys(self) -> tuple[str, ...]:
        """Dotted keys that the search sets, in the order of the table's columns."""
        search = self.search
        if isinstance(search, GridSearch):
            return tuple(search.over)
        if isinstance(search, OptunaSearch):
            return tuple(dimension.key for dimension in search.space)
        return tuple(dict.fromkeys(key for entry in search.entries for key in entry.settings))
