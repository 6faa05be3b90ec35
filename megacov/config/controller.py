"""Settings of a controller: what it measures the entropy against, which value it sets, and by which law."""

from __future__ import annotations

from itertools import pairwise
from math import isinf
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictFloat, StrictInt, Tag, model_validator

from megacov.config.section import Section

ActsOn = Literal["kl_coef", "ratio", "entropy_coef", "clip_high"]


class TargetPoint(Section):
    """A point of the target's course."""

    step: StrictInt = Field(ge=1)
    """Step at which the target is this, counted from 0. [steps]"""
    entropy: StrictFloat = Field(gt=0)
    """The target there. [nats]"""


class GainsSection(Section):
    """How strongly the value answers to the error: by how much of the way between its bounds, if the error is 1."""

    proportional: StrictFloat = Field(2.0, ge=0)
    """Part of the answer that goes with the error. [share of the bounds]"""
    integral: StrictFloat = Field(0.01, ge=0)
    """Part that each step adds as long as the error lasts. [share of the bounds a step]"""

    @model_validator(mode="after")
    def _something_answers(self) -> GainsSection:
        if self.proportional == 0 and self.integral == 0:
            raise ValueError("proportional and integral are 0, so the value never changes: raise one of them.")
        return self


class BoundsSection(Section):
    """Between which the value stays."""

    lower: StrictFloat = Field(ge=0)
    """Lowest value. [as the setting]"""
    upper: StrictFloat = Field(gt=0)
    """Highest value. [as the setting]"""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> BoundsSection:
        if not self.lower < self.upper:
            raise ValueError(f"lower is {self.lower} and upper is {self.upper}: set lower below upper.")
        return self


class PlantSection(Section):
    """How the entropy answers to the value, for the simulation of `megacov check`; training does not read it.

    By default as the tiny policy does to kl_coef between 0.25 and 16, at a target of 0.5 nats. docs/controller.md shows
    how to measure it.
    """

    gain: StrictFloat = Field(7.0, gt=0, le=1e6)
    """By how much the entropy rises, in the end, from the lower bound to the upper. [targets]"""
    time_constant: StrictFloat = Field(80.0, gt=0, le=2000)
    """Steps after which 63 % of a change has come about. [steps]"""
    delay: StrictInt = Field(1, ge=0, le=1000)
    """Steps before a change shows at all, beside the step in which the value is used. [steps]"""
    noise: StrictFloat = Field(0.04, ge=0, le=1)
    """Standard deviation of the measured entropy around its course. [targets]"""


class NoController(Section):
    """Every setting keeps its value."""

    # Constants, so that a reader of any controller finds them; a file cannot set them.
    acts_on: ClassVar[str | None] = None

    name: Literal["none"] = "none"
    """No controller."""


class TargetSection(Section):
    """What all controllers share: the entropy that they steer to, a token mean at temperature 1."""

    target_entropy: StrictFloat = Field(gt=0)
    """Entropy to steer to; with a schedule, that of the first step. [nats]"""
    target_schedule: tuple[TargetPoint, ...] = ()
    """Further points of the target, which goes straight from one to the next and then stays."""

    @model_validator(mode="after")
    def _points_are_ordered(self) -> TargetSection:
        for before, after in pairwise(self.target_schedule):
            if after.step <= before.step:
                raise ValueError(
                    f"target_schedule has step {before.step} before step {after.step}: put its points in order of step."
                )
        return self


class PiController(TargetSection):
    """Proportional-integral control of one setting, whose own value is where it begins. It needs no name."""

    name: Literal["pi"] = "pi"
    """A proportional-integral controller; a section without a name means this one."""
    acts_on: ActsOn
    """The setting: algorithm.loss.kl_coef, algorithm.selection.ratio, algorithm.entropy_coef, or
    algorithm.loss.clip_high. A larger one is taken to raise the entropy."""
    bounds: BoundsSection
    """Between which the setting stays."""
    scale: Literal["linear", "log"] = "linear"
    """Whether equal parts of the way between the bounds are equal differences or equal ratios."""
    gains: GainsSection = GainsSection()
    """How strongly it answers to the error, which is (target - entropy) / target."""
    dead_band: StrictFloat = Field(0.02, ge=0, lt=1)
    """An error of less than this counts as 0, and a larger one less by this. [targets]"""
    plant: PlantSection = PlantSection()
    """How the entropy answers, for the simulation of `megacov check`."""

    @model_validator(mode="after")
    def _scale_fits_the_bounds(self) -> PiController:
        lower, upper = self.bounds.lower, self.bounds.upper
        if self.scale == "log" and lower == 0:
            raise ValueError("scale is log and bounds.lower is 0, which no ratio reaches: raise it, or set linear.")
        if self.scale == "log" and isinf(upper / lower):
            raise ValueError(f"scale is log and {upper:g} over {lower:g} is no number: bring the bounds closer.")
        return self


class AdaptiveEntropyController(TargetSection):
    """The adaptive entropy coefficient of Skywork-OR1 (arXiv 2505.22312): algorithm.entropy_coef goes up by a constant
    after a step of too low an entropy and down after others, and is 0 in the step after one of these."""

    acts_on: ClassVar[str | None] = "entropy_coef"

    name: Literal["adaptive_entropy"] = "adaptive_entropy"
    """The adaptive entropy coefficient."""
    step: StrictFloat = Field(1e-4, gt=0)
    """By how much the coefficient changes. [per nat]"""
    bounds: BoundsSection = BoundsSection(lower=0.0, upper=5e-3)
    """Between which the coefficient stays."""


class EntropicController(TargetSection):
    """The controller of EntroPIC (arXiv 2511.15248), which sets alpha of the loss entropic between -1 and 1."""

    acts_on: ClassVar[str | None] = "alpha"

    name: Literal["entropic"] = "entropic"
    """The controller of EntroPIC."""
    proportional: StrictFloat = Field(1.0, ge=0)
    """Part of alpha that goes with the entropy's distance above its target. [per nat]"""
    integral: StrictFloat = Field(0.01, ge=0)
    """Part of alpha that goes with the sum of all distances so far. [per nat and step]"""


class RepoRController(TargetSection):
    """The controller of REPO-R (arXiv 2603.11682), which doubles, halves or turns around zeta of the loss repo_r."""

    acts_on: ClassVar[str | None] = "zeta"

    name: Literal["repo_r"] = "repo_r"
    """The controller of REPO-R."""
    zeta_min: StrictFloat = Field(1e-4, gt=0)
    """Smallest magnitude, at which zeta changes its sign; a smaller one, such as 0, begins here. [per nat]"""
    zeta_max: StrictFloat = Field(0.05, gt=0, le=1)
    """Largest magnitude. [per nat]"""

    @model_validator(mode="after")
    def _magnitudes_are_ordered(self) -> RepoRController:
        if not self.zeta_min < self.zeta_max:
            raise ValueError(f"zeta_min is {self.zeta_min} and zeta_max is {self.zeta_max}: set zeta_min below.")
        return self


def controller_form(value: Any) -> str:
    """The member of `Controller` that a value is for; one without a name is a PI controller."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "pi" if name is None else str(name)


Controller = (
    Annotated[NoController, Tag("none")]
    | Annotated[PiController, Tag("pi")]
    | Annotated[AdaptiveEntropyController, Tag("adaptive_entropy")]
    | Annotated[EntropicController, Tag("entropic")]
    | Annotated[RepoRController, Tag("repo_r")]
)
