"""A controller sets its value in the algorithm of the next step, and its state goes through a checkpoint unchanged."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from megacov.config import RunConfig, make_config
from megacov.config.yaml_text import read_yaml
from megacov.monitor.tags import TAGS
from megacov.plan.control import ControlState
from megacov.trainer.algorithm import Algorithm, build_algorithm
from megacov.trainer.control import MEASURED, observe, steer
from megacov.trainer.saving.restore import read_state
from megacov.trainer.state import TrainState
from tests.support.config_values import algorithm, values

KL_COV = algorithm("kl_cov", name="kl_cov")
PLACES = {
    "kl_coef": (KL_COV, (0.5, 2.0)),
    "ratio": (KL_COV, (1e-4, 1e-2)),
    "entropy_coef": (KL_COV | {"entropy_coef": 0.01}, (0.001, 0.1)),
    "clip_high": ({}, (0.1, 0.4)),
}


def config_of(acts_on: str, **further: Any) -> RunConfig:
    section, (lower, upper) = PLACES[acts_on]
    bounds = {"lower": lower, "upper": upper}
    controller = {"target_entropy": 0.5, "acts_on": acts_on, "bounds": bounds, **further}
    return make_config(values(algorithm={**section, "controller": controller}))


def published(name: str, **changes: Any) -> RunConfig:
    """A tiny run with the algorithm of a file, and changes to its controller."""
    section = read_yaml(Path("yaml_configs", "algorithms", f"{name}.yaml"), source=name)["algorithm"]
    return make_config(values(algorithm={**section, "controller": {**section["controller"], **changes}}))


def value_in(found: Algorithm, acts_on: str) -> float:
    """The value where selection or loss read it."""
    owner = {"ratio": found.selection_hyperparameters, "entropy_coef": vars(found)}
    return float(owner.get(acts_on, found.loss_hyperparameters)[acts_on])


def everything_but(acts_on: str, found: Algorithm) -> dict[str, Any]:
    fields = vars(found) | {acts_on: None}
    changeable = ("loss_hyperparameters", "selection_hyperparameters")
    return fields | {name: fields[name] | {acts_on: None} for name in changeable}


@pytest.mark.parametrize("acts_on", PLACES)
def test_the_next_step_uses_the_value(acts_on: str) -> None:
    config = config_of(acts_on)
    built, state = build_algorithm(config), TrainState()
    first = steer(built, state)
    assert first == built
    metrics = observe(built, state, {MEASURED: 0.3})
    assert set(metrics) <= set(TAGS) and metrics["control/measured"] == 0.3 and metrics["control/target"] == 0.5
    assert metrics["control/value"] == value_in(built, acts_on)
    second = steer(built, state)
    assert state.control is not None
    assert value_in(second, acts_on) == state.control.value > value_in(built, acts_on)
    assert everything_but(acts_on, second) == everything_but(acts_on, built)


def test_without_a_controller_nothing_is_touched() -> None:
    built, state = build_algorithm(make_config(values())), TrainState()
    assert steer(built, state) is built and observe(built, state, {MEASURED: 0.3}) == {} and state == TrainState()


@pytest.mark.parametrize("entropy", [None, nan, inf])
def test_a_step_without_an_entropy_changes_nothing(entropy: float | None) -> None:
    built, state = build_algorithm(config_of("kl_coef")), TrainState()
    observe(built, state, {MEASURED: 0.3})
    before = state.control
    found = observe(built, state, {} if entropy is None else {MEASURED: entropy})
    assert state.control == before and "control/measured" not in found and "control/value" in found


def test_the_state_goes_through_a_checkpoint_bit_for_bit() -> None:
    built, state = build_algorithm(config_of("kl_coef")), TrainState()
    for measured in (0.1 + 0.2, 0.7, 1 / 3):
        observe(built, state, {MEASURED: measured})
        state.advance(num_updates=8)
    read = read_state(json.loads(json.dumps(asdict(state))))
    assert read == state and isinstance(read.control, ControlState)
    # A record that is older than controllers.
    older = {name: value for name, value in asdict(state).items() if not name.startswith("control")}
    assert read_state(older) == TrainState(step=3, update=24)


def test_the_state_of_another_controller_is_not_taken_over() -> None:
    state = TrainState()
    observe(build_algorithm(config_of("kl_coef")), state, {MEASURED: 0.3})
    other = build_algorithm(config_of("ratio"))
    assert steer(other, state) == other


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (config_of("kl_coef"), config_of("kl_coef", bounds={"lower": 0.9, "upper": 1.1}), 1.1),
        (published("repo_r"), published("repo_r", zeta_max=3e-4), 3e-4),
        (published("adaptive_entropy"), published("adaptive_entropy", bounds={"lower": 0.0, "upper": 1.5e-4}), 1.5e-4),
    ],
)
def test_a_run_that_continues_with_other_bounds_is_within_them_from_its_first_step(
    before: RunConfig, after: RunConfig, expected: float
) -> None:
    first, state = build_algorithm(before), TrainState()
    for _ in range(3):
        observe(first, state, {MEASURED: 1e-6})
    assert first.control is not None and state.control is not None
    assert first.control.state_of(state) == state.control  # its own bounds change nothing
    continued = build_algorithm(after)
    assert continued.control is not None
    assert observe(continued, state, {MEASURED: 0.3})["control/value"] == pytest.approx(expected)


def test_the_target_follows_its_schedule() -> None:
    built = build_algorithm(config_of("kl_coef", target_schedule=[{"step": 4, "entropy": 0.3}]))
    found = [observe(built, TrainState(step=step), {MEASURED: 0.4})["control/target"] for step in (0, 2, 4, 9)]
    assert found == pytest.approx([0.5, 0.4, 0.3, 0.3])


def test_the_adaptive_coefficient_reaches_the_loss_as_published() -> None:
    config = published("adaptive_entropy")
    built, state, found = build_algorithm(config), TrainState(), []
    for measured in (0.1, 0.15, 0.3, 0.1):
        found.append(steer(built, state).entropy_coef)
        observe(built, state, {MEASURED: measured})
    assert found == pytest.approx([0.0, 1e-4, 2e-4, 0.0]) and steer(built, state).entropy_coef == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("name", "hyperparameter", "expected"),
    [("entropic", "alpha", [0.0, -0.0505, 0.2]), ("repo_r", "zeta", [1e-4, 2e-4, 1e-4])],
)
def test_losses_with_a_controller_of_their_own_begin_as_published(
    name: str, hyperparameter: str, expected: list[float]
) -> None:
    built, state, found = build_algorithm(published(name)), TrainState(), []
    target = built.control.target.at(0) if built.control else 0.0
    for error in (-0.05, 0.2 / 1.01 + 0.0005 / 1.01, 0.0):
        found.append(steer(built, state).loss_hyperparameters[hyperparameter])
        observe(built, state, {MEASURED: target + error})
    assert found == pytest.approx(expected)
