"""What a simulation of a run's controller finds before the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megacov.config import RunConfig
from megacov.config.controller import PiController
from megacov.plan.control import PiLaw, Plant, judge
from megacov.trainer.control import build_control


def control_remarks(config: RunConfig) -> Iterator[str]:
    """Warn of gains with which the entropy would swing, or would not get to its target.

    Args:
        config: configuration that has passed the rules.

    Yields:
        One sentence, or none.
    """
    section, control = config.algorithm.controller, build_control(config)
    if control is None or not isinstance(section, PiController) or not isinstance(control.law, PiLaw):
        return
    gains, plant = section.gains, Plant(**section.plant.model_dump())
    begin = (
        f"algorithm.controller.gains are {gains.proportional:g} (proportional) and {gains.integral:g} (integral), and "
        f"in a simulation of the entropy by algorithm.controller.plant (gain {plant.gain:g}, time_constant "
        f"{plant.time_constant:g}, delay {plant.delay})"
    )
    verdict = judge(control.law, plant, control.law.place, slack=section.dead_band)
    if verdict == "swings":
        fitting = _stable_gains(control.law, plant, slack=section.dead_band)
        advice = f"gains {fitting:g} times as large settle" if fitting is not None else "lower both"
        if fitting is None and gains.integral == 0:
            advice = "lower gains.proportional and raise gains.integral"
        yield f"{begin} it swings without end: {advice}, or describe the entropy of this run in plant."
    elif verdict == "misses":
        yield (
            f"{begin} it stays away from its target: raise gains.integral, or describe the entropy of this run in "
            "plant."
        )


def _stable_gains(law: PiLaw, plant: Plant, *, slack: float) -> float | None:
    """By what factor both gains have to be smaller, of 1/2, 1/4, 1/8 and so on; None for none of them."""
    for factor in (2.0**-k for k in range(1, 11)):
        slower = replace(law, proportional=law.proportional * factor, integral=law.integral * factor)
        if judge(slower, plant, law.place, slack=slack) == "settles":
            return factor
    return None
