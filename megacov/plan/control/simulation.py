"""A model of how the entropy answers to a value, and a law of control that runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import Literal

from megacov.plan.control.law import Law

SETTLED = 0.05
"""An entropy that stays this near to its target without noise has settled. [targets]"""


@dataclass(frozen=True)
class Plant:
    """A first-order answer with a delay and noise, in units of the target.

    h_(k+1) = h_k + (rest + gain place_(k - delay) - h_k) / time_constant
    measured_k = max(0, h_k + noise n_k), n_k normal

    The value that leads to the target lies at place 1/2, so `rest` is 1 - gain / 2: a controller that gets there from
    either end gets everywhere.

    gain: rise of the entropy, in the end, from the lower bound of the value to the upper one.
    time_constant: steps, > 0; below 1 it counts as 1, where the answer is complete after one step.
    delay: steps before a change shows at all, >= 0.
    noise: standard deviation of a measurement.
    """

    gain: float
    time_constant: float
    delay: int = 0
    noise: float = 0.0


@dataclass(frozen=True)
class Simulated:
    """A law on a plant.

    entropies: true ones, in units of the target, one a step.
    error: largest distance from the target over the last quarter of the steps.
    swing: largest minus smallest entropy over the last quarter of the steps.
    spread: root mean square of the distance from the target over the last quarter of the steps.
    """

    entropies: tuple[float, ...]
    error: float
    swing: float
    spread: float


def simulate(
    law: Law,
    plant: Plant,
    place_of: Callable[[float], float],
    *,
    steps: int,
    first: float = 1.5,
    with_noise: bool = False,
    seed: int = 0,
) -> Simulated:
    """Let a law steer the entropy of a plant to 1.

    Args:
        law: the law of control.
        plant: how the entropy answers.
        place_of: place of a value between its bounds, 0 to 1.
        steps: number of steps, at least 4.
        first: entropy of the first step, in units of the target.
        with_noise: whether measurements are noisy.
        seed: of the noise.

    Returns:
        The course of the entropy.
    """
    random, state, entropy = Random(seed), law.begin(), first
    rest, lag = 1 - plant.gain / 2, max(1.0, plant.time_constant)
    places = [place_of(state.value)] * (plant.delay + 1)
    entropies = []
    for _ in range(steps):
        entropies.append(entropy)
        noise = plant.noise * random.gauss(0.0, 1.0) if with_noise else 0.0
        state = law.after(state, measured=max(0.0, entropy + noise), target=1.0)
        entropy = max(0.0, entropy + (rest + plant.gain * places.pop(0) - entropy) / lag)
        places.append(place_of(state.value))
    tail = entropies[-(steps // 4) :]
    spread = sqrt(sum((each - 1) ** 2 for each in tail) / len(tail))
    return Simulated(tuple(entropies), max(abs(each - 1) for each in tail), max(tail) - min(tail), spread)


Verdict = Literal["settles", "swings", "misses"]


def judge(law: Law, plant: Plant, place_of: Callable[[float], float], *, slack: float = 0.0) -> Verdict:
    """Whether a law brings the entropy of a plant to its target from above and from below, and keeps it there.

    It has 50 time constants and delays for it, and is judged without noise: what then still swings, swings by itself.

    Args:
        law: the law of control.
        plant: how the entropy answers.
        place_of: as in `simulate`.
        slack: distance from the target that the law does not mind, in units of the target.

    Returns:
        "swings" if the entropy goes up and down by more than twice `SETTLED` and the slack in the last quarter of the
        steps, where the value then swings with it; "misses" if it is else farther than once that from its target.
    """
    steps, near = int(50 * (max(1.0, plant.time_constant) + plant.delay + 1)), SETTLED + slack
    found = [simulate(law, plant, place_of, steps=steps, first=first) for first in (0.5, 1.5)]
    if any(each.swing > 2 * near for each in found):
        return "swings"
    return "misses" if any(each.error > near for each in found) else "settles"
