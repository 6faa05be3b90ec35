"""The controller of a run: a setting of the algorithm that follows the entropy from step to step. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.config.controller import (
    AdaptiveEntropyController,
    EntropicController,
    NoController,
    PiController,
    RepoRController,
    TargetSection,
)
from megacov.config.controller_rules import controlled_setting
from megacov.plan.control import AdaptiveLaw, ControlState, EntropicLaw, Law, PiLaw, RepoRLaw, Target

if TYPE_CHECKING:
    from megacov.trainer.algorithm import Algorithm
    from megacov.trainer.state import TrainState

MEASURED = "entropy/token_mean_t1"
"""What a controller sees: the mean over all loss tokens of a step, exact in every layout, under the policy before the
first optimizer step."""


@dataclass(frozen=True)
class Control:
    """A law of control and the setting that it sets.

    name: of the law and the setting, as in "pi of kl_coef". A state of another name is not taken over.
    acts_on: a hyperparameter of loss or selection, or "entropy_coef".
    """

    name: str
    acts_on: str
    law: Law
    target: Target

    def state_of(self, state: TrainState) -> ControlState:
        """The state that a step begins with."""
        if state.control is None or state.controlled_by != self.name:
            return self.law.begin()
        return self.law.within_bounds(state.control)


def steer(algorithm: Algorithm, state: TrainState) -> Algorithm:
    """Set the value that the controller has chosen for a step.

    Args:
        algorithm: as built from the configuration.
        state: before the step.

    Returns:
        The algorithm of the step; the same where nothing is controlled.
    """
    control = algorithm.control
    if control is None:
        return algorithm
    name, value = control.acts_on, control.state_of(state).value
    if name == "entropy_coef":
        return replace(algorithm, entropy_coef=value)
    if name == "ratio":
        return replace(algorithm, selection_hyperparameters={**algorithm.selection_hyperparameters, name: value})
    return replace(algorithm, loss_hyperparameters={**algorithm.loss_hyperparameters, name: value})


def observe(algorithm: Algorithm, state: TrainState, metrics: Mapping[str, float]) -> dict[str, float]:
    """Show the controller the entropy of a step, and keep in the state what the next step begins with.

    A step without a finite entropy changes nothing.

    Args:
        algorithm: its controller, if any.
        state: of the step, not advanced yet; `control` is replaced.
        metrics: of the step, equal on all ranks.

    Returns:
        `control/*` by tag.
    """
    control = algorithm.control
    if control is None:
        return {}
    before, target = control.state_of(state), control.target.at(state.step)
    measured, after, seen = metrics.get(MEASURED), before, {}
    if measured is not None and isfinite(measured):
        after, seen = control.law.after(before, measured=measured, target=target), {"control/measured": measured}
    state.control, state.controlled_by = after, control.name
    return {"control/value": before.value, "control/target": target, "control/integral": after.integral, **seen}


def build_control(config: RunConfig) -> Control | None:
    """Make the controller of a run.

    Args:
        config: configuration that has passed the rules.

    Returns:
        The controller, or None where every setting keeps its value.
    """
    section = config.algorithm.controller
    if isinstance(section, NoController):
        return None
    law = _law(config)
    return Control(f"{section.name} of {section.acts_on}", str(section.acts_on), law, _target(section))


def _target(section: TargetSection) -> Target:
    return Target([(0, section.target_entropy), *((point.step, point.entropy) for point in section.target_schedule)])


def _law(config: RunConfig) -> Law:
    section, start = config.algorithm.controller, controlled_setting(config)[1]
    if isinstance(section, AdaptiveEntropyController):
        return AdaptiveLaw(start, section.bounds.lower, section.bounds.upper, section.step)
    if isinstance(section, EntropicController):
        return EntropicLaw(start, section.proportional, section.integral)
    if isinstance(section, RepoRController):
        return RepoRLaw(start, section.zeta_min, section.zeta_max)
    assert isinstance(section, PiController)
    return PiLaw(
        start=start,
        lower=section.bounds.lower,
        upper=section.bounds.upper,
        proportional=section.gains.proportional,
        integral=section.gains.integral,
        dead_band=section.dead_band,
        is_log=section.scale == "log",
    )
