"""Alarms over whole histories: each fires on what it is for, none on healthy noise, and none depends on the future."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from megacov.config import RunConfig
from megacov.config.fields import walk_values
from megacov.config.monitor import AlarmKind, AlarmsSection
from megacov.monitor.alarms import ALARMS, Alarm, AlarmSettings, find_alarms
from megacov.monitor.history import History, Series
from megacov.monitor.tags import TAGS

PAGE = Path(__file__).parents[4] / "docs" / "alarms.md"
STEPS = 300
Values = NDArray[np.float64]


def noise(random: np.random.Generator, size: float, *, correlation: float = 0.5) -> Values:
    """Autocorrelated normal noise of a standard deviation; the steps of a run are not independent."""
    values = random.normal(0.0, size, STEPS)
    for i in range(1, STEPS):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * values[i]
    return values


def healthy(seed: int) -> dict[str, Values]:
    """A KL-Cov run as the paper shows it: 0.73 nats fall to a third and rise again, and responses become three times
    as long in 300 steps. One step in twenty waits three times as long for its rollout.
    """
    random, time = np.random.default_rng(seed), np.arange(STEPS) / STEPS
    entropy = (0.22 + 0.51 * np.exp(-time * 12) + 0.08 * time) * np.exp(noise(random, 0.05))
    rollout = 40.0 * np.exp(noise(random, 0.25)) * np.where(random.random(STEPS) < 0.05, 3.0, 1.0)
    update = 20.0 * np.exp(noise(random, 0.1))
    return {
        "entropy/token_mean": entropy,
        "reward/mean": 0.2 + 0.4 * (1 - np.exp(-time * 4)) + noise(random, 0.02),
        "selection/count": random.poisson(40, STEPS).astype(float),
        "selection/band_population": random.poisson(3, STEPS).astype(float),
        "policy/kl_selected_fraction": np.full(STEPS, 2e-3),
        "policy/kl_penalty": 2e-5 * np.exp(noise(random, 0.3)),
        "rollout/mismatch_k1_abs": 0.012 * np.exp(noise(random, 0.15)),
        "rollout/length_mean": 1000 * (1 + 2 * time) * np.exp(noise(random, 0.05)),
        "rollout/truncated_fraction": np.clip(0.1 + noise(random, 0.04), 0, 1),
        "perf/rollout_s": rollout,
        "perf/update_s": update,
        "perf/step_s": rollout + update + 5.0,
        "law/ceiling": 0.75 + noise(random, 0.01),
        "law/ceiling_low": np.full(STEPS, 0.71),
        "law/ceiling_high": np.full(STEPS, 0.79),
    }


def history_of(scalars: dict[str, Values], *, until: int = STEPS) -> History:
    steps = np.arange(1, until + 1, dtype=np.int64)
    return History({tag: Series(steps, values[:until]) for tag, values in scalars.items()}, {}, ())


def from_step(step: int, before: Values, after: Values | float) -> Values:
    return np.where(np.arange(1, STEPS + 1) < step, before, after)


def falling(run: dict[str, Values], rate: float) -> Values:
    """The entropy of a run, which from step 100 on falls at a rate per step."""
    since = np.maximum(np.arange(1, STEPS + 1) - 100, 0)
    return run["entropy/token_mean"] * np.exp(-rate * since)


# What happens from step 100 on, and the steps at which the alarm may come.
BUILT: dict[str, tuple[Callable[[dict[str, Values]], dict[str, Values]], range]] = {
    # From 0.25 nats, 0.05 are 40 steps away, and 10 before is the time for the alarm; noise and hold allow a few more.
    "collapse": (lambda run: {"entropy/token_mean": falling(run, 0.04)}, range(128, 142)),
    "explosion": (lambda run: {"entropy/token_mean": falling(run, -0.04)}, range(135, 155)),
    "silent_collapse": (
        lambda run: {
            "selection/count": from_step(100, run["selection/count"], 0.0),
            "entropy/token_mean": falling(run, 0.02),
        },
        range(107, 125),
    ),
    "kl_cov_inert": (lambda run: {"policy/kl_penalty": from_step(100, run["policy/kl_penalty"], 0.0)}, range(104, 105)),
    "empty_band": (
        lambda run: {"selection/band_population": from_step(100, run["selection/band_population"], 0.0)},
        range(105, 109),
    ),
    "rising_mismatch": (
        lambda run: {
            "rollout/mismatch_k1_abs": from_step(100, *[run["rollout/mismatch_k1_abs"] * k for k in (1.0, 5.0)])
        },
        range(104, 110),
    ),
    "drifting_length": (
        lambda run: {"rollout/length_mean": from_step(100, *[run["rollout/length_mean"] * k for k in (1.0, 0.3)])},
        range(104, 110),
    ),
    "reward_ceiling": (
        lambda run: {"reward/mean": from_step(100, run["reward/mean"], run["reward/mean"] * 0.02 + 0.74)},
        range(119, 150),
    ),
    "stalled_phase": (
        lambda run: {
            "perf/update_s": from_step(100, run["perf/update_s"], 160.0),
            "perf/step_s": run["perf/step_s"] + from_step(100, np.zeros(STEPS), 140.0),
        },
        range(102, 104),
    ),
}


@pytest.mark.parametrize("kind", ALARMS)
def test_an_alarm_fires_once_when_its_thing_happens(kind):
    change, when = BUILT[kind]
    for seed in range(10):
        run = healthy(seed)
        found = [alarm for alarm in find_alarms(history_of(run | change(run)), AlarmSettings()) if alarm.kind == kind]
        assert len(found) == 1 and found[0].step in when, (seed, found)


def test_healthy_runs_raise_almost_none():
    """The rate that docs/alarms.md states: at most one alarm in 100 runs of 300 steps."""
    raised = [alarm for seed in range(100) for alarm in find_alarms(history_of(healthy(seed)), AlarmSettings())]
    assert len(raised) <= 1, raised


def as_known_at(alarms: list[Alarm], step: int) -> list[Alarm]:
    """Alarms as a reader knows them at a step: later ones are not there, and those cleared later still last."""
    is_over = [alarm.cleared is not None and alarm.cleared <= step for alarm in alarms]
    known = [alarm if over else replace(alarm, cleared=None) for alarm, over in zip(alarms, is_over, strict=True)]
    return [alarm for alarm in known if alarm.step <= step]


def test_no_alarm_depends_on_later_steps():
    """So a run that is watched live, one that is resumed, and a reader of its files find the same."""
    run = healthy(0)
    for change, _ in BUILT.values():
        run = run | change(run)
    for tag, values in run.items():  # everything is well again from step 200 on, so that alarms are also cleared
        run[tag] = from_step(200, values, healthy(0)[tag])
    alarms = find_alarms(history_of(run), AlarmSettings())
    assert {alarm.kind for alarm in alarms} >= {"empty_band", "kl_cov_inert", "rising_mismatch", "stalled_phase"}
    assert any(alarm.cleared for alarm in alarms)
    for until in range(1, STEPS + 1):
        assert find_alarms(history_of(run, until=until), AlarmSettings()) == as_known_at(alarms, until)


def test_an_alarm_that_flickers_is_raised_once():
    run = healthy(0)
    limit = 3.0 * np.median(run["rollout/mismatch_k1_abs"][:10])
    flicker = limit * (1.0 + 0.2 * np.sin(np.arange(STEPS) / 5))  # above the limit and below it, never far below
    run["rollout/mismatch_k1_abs"] = from_step(50, run["rollout/mismatch_k1_abs"], flicker)
    (alarm,) = find_alarms(history_of(run), AlarmSettings())
    assert alarm.kind == "rising_mismatch" and alarm.cleared is None
    quiet = from_step(100, run["rollout/mismatch_k1_abs"], healthy(0)["rollout/mismatch_k1_abs"])
    again = from_step(200, quiet, flicker * 2)
    steps = [a.step for a in find_alarms(history_of(run | {"rollout/mismatch_k1_abs": again}), AlarmSettings())]
    assert len(steps) == 2 and steps[1] >= 200


def test_an_empty_short_or_partly_missing_history_is_no_error():
    run = healthy(0)
    assert find_alarms(History({}, {}, ()), AlarmSettings()) == []
    for until in (0, 1, 2, 4, 9, 11):
        assert find_alarms(history_of(run, until=until), AlarmSettings()) == []
    for tag in run:
        assert find_alarms(history_of({name: run[name] for name in run if name != tag}), AlarmSettings()) == []


def test_values_that_are_not_finite_are_passed_over():
    run = healthy(0)
    steps = np.arange(STEPS)
    run = {tag: np.where((steps + i) % 7 == 0, (np.nan, np.inf)[i % 2], run[tag]) for i, tag in enumerate(run)}
    assert find_alarms(history_of(run), AlarmSettings()) == []


def test_responses_that_are_cut_from_the_first_step_on_raise_an_alarm():
    run = healthy(0) | {"rollout/truncated_fraction": np.full(STEPS, 0.6)}
    (alarm,) = find_alarms(history_of(run), AlarmSettings())
    assert (alarm.kind, alarm.step) == ("drifting_length", 7) and "60%" in alarm.seen


def test_one_update_a_rollout_is_known_from_the_settings():
    """Rounding may make the penalty of the first optimizer step a little more than 0."""
    history = history_of(healthy(0) | {"policy/kl_penalty": np.full(STEPS, 1e-7)})
    assert find_alarms(history, AlarmSettings(updates_per_rollout=8)) == []
    (alarm,) = find_alarms(history, AlarmSettings(updates_per_rollout=1))
    assert (alarm.kind, alarm.step) == ("kl_cov_inert", 5)


def test_the_configuration_has_the_same_thresholds_and_kinds():
    plain = AlarmSettings()
    assert AlarmsSection().model_dump() | {"updates_per_rollout": None} == {
        name: getattr(plain, name) for name in AlarmSettings.__dataclass_fields__
    }
    assert get_args(AlarmKind) == tuple(ALARMS)


def test_knobs_are_settings_and_the_page_explains_each_alarm():
    settings, page = {place.path for place in walk_values(RunConfig)}, PAGE.read_text(encoding="utf-8")
    run, knobs = healthy(0), []
    stalled = BUILT["stalled_phase"][0](run)
    phases = [stalled | {f"perf/{phase}_s": stalled["perf/update_s"]} for phase in ("rollout", "weight_sync", "save")]
    growing = {"rollout/length_mean": from_step(100, *[run["rollout/length_mean"] * k for k in (1.0, 3.0)])}
    cut = {"rollout/truncated_fraction": np.full(STEPS, 0.6)}
    for changed in (*(change(run) for change, _ in BUILT.values()), *phases, growing, cut):
        knobs += [alarm.knob for alarm in find_alarms(history_of(run | changed), AlarmSettings())]
    assert all(f"| `{kind}` |" in page for kind in ALARMS)
    sections = "|".join(RunConfig.model_fields)
    named = set(re.findall(rf"\b(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*", str(knobs)))
    assert len(named) > 15 and named <= settings
    assert all(f"`monitor.alarms.{name}`" in page for name in AlarmsSection.model_fields)


def test_one_slow_save_is_no_stalled_phase_and_three_are():
    run, steps = history_of(healthy(0)), np.arange(11, STEPS, 10, dtype=np.int64)
    for num_slow in (1, 2, 3):
        seconds = np.where((steps > 240) & (steps < 241 + 10 * num_slow), 60.0, 2.0)
        history = History(run.scalars | {"perf/save_s": Series(steps, seconds)}, {}, ())
        found = [(alarm.kind, alarm.step) for alarm in find_alarms(history, AlarmSettings())]
        assert found == ([("stalled_phase", 261)] if num_slow == 3 else []), num_slow


def test_only_times_are_phases():
    """Throughput that rises again after a slow stretch is no stalled phase, though its tag ends like a time's."""
    run = healthy(0)
    run["perf/step_s"] = from_step(100, run["perf/step_s"] * 10, run["perf/step_s"])
    names = [tag for tag, about in TAGS.items() if re.fullmatch(r"perf/\w+_s", tag) and about.unit != "s"]
    assert names == ["perf/tokens_per_s"]
    slow = from_step(100, np.full(STEPS, 1e3), 1e4)
    assert find_alarms(history_of(run | {"perf/tokens_per_s": slow}), AlarmSettings()) == []
