"""The entropy law in a report: reward against entropy, with the curve, its ceiling and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacov.monitor.entropy_law import EntropyLaw, fit, read_conditions
from megacov.monitor.entropy_law.curves import find_best_reward
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.history import History
from megacov.monitor.report.charts import Chart, draw, figure, legend, svg, table
from megacov.monitor.report.frame import Frame
from megacov.monitor.report.text import count, escape, number

_MAX_DOTS = 1500
_OVER_TIME = Chart(
    "law-over-time",
    "Ceiling as the run went on",
    "reward",
    {
        "ceiling": "law/ceiling",
        "lower end of its interval": "law/ceiling_low",
        "upper end of its interval": "law/ceiling_high",
        "reward": REWARD_TAG,
    },
    "Each step's ceiling is that of the law fitted to the steps until then.",
)


def law_section(history: History, config: Mapping[str, Any] | None) -> tuple[str, str]:
    """Fit the law to the run and show it.

    Args:
        history: metrics of training.
        config: settings of the run as plain values; None if they are not known.

    Returns:
        HTML, and "", or "" and why there is nothing to show.
    """
    entropies, rewards = _points(history)
    if not len(entropies):
        return "", f"The run has logged no step with both {ENTROPY_TAG} and {REWARD_TAG}."
    law = _fit(history, entropies, rewards, config)
    is_shown = law.verdict.outcome != "refused"
    body = "".join(
        [
            _verdict(law),
            '<div class="charts">',
            _scatter(entropies, rewards, law if is_shown else None),
            draw(_OVER_TIME, history.scalars) if "law/ceiling" in history.scalars else "",
            "</div>",
            _coefficients(law) if is_shown else "",
        ]
    )
    return body, ""


def _verdict(law: EntropyLaw) -> str:
    """Whether to believe the law, with the reasons."""
    sentence = {
        "holds": law.verdict.sentence,
        "doubtful": "The law R = -a exp(H) + b is to be used with care here:",
        "refused": "The law R = -a exp(H) + b is refused here, and no ceiling is given:",
    }[law.verdict.outcome]
    reasons = "".join(f"<li>{escape(reason.sentence)}</li>" for reason in law.verdict.reasons)
    return f"<p>{escape(sentence)}</p>" + (f'<ul class="warn">{reasons}</ul>' if reasons else "")


def law_summary(history: History, config: Mapping[str, Any] | None) -> str:
    """The ceiling with its interval in a line; "" where the law is refused."""
    entropies, rewards = _points(history)
    if not len(entropies):
        return ""
    law = _fit(history, entropies, rewards, config)
    if law.verdict.outcome == "refused":
        return ""
    doubt = ", to be used with care" if law.verdict.outcome == "doubtful" else ""
    return f"{number(law.ceiling)}, 95 % interval {_ends(law.intervals.ceiling.low, law.intervals.ceiling.high)}{doubt}"


def _fit(
    history: History, entropies: NDArray[np.float64], rewards: NDArray[np.float64], config: Mapping[str, Any] | None
) -> EntropyLaw:
    return fit(
        entropies,
        rewards,
        conditions=None if config is None else read_conditions(config),
        best_reward=find_best_reward(history.scalars, REWARD_TAG),
    )


def _points(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Entropy and reward at the steps that have both, in their order."""
    entropy, reward = history.scalars.get(ENTROPY_TAG), history.scalars.get(REWARD_TAG)
    if entropy is None or reward is None:
        return np.empty(0), np.empty(0)
    _, at_entropy, at_reward = np.intersect1d(entropy.steps, reward.steps, assume_unique=True, return_indices=True)
    return entropy.values[at_entropy], reward.values[at_reward]


def _scatter(entropies: NDArray[np.float64], rewards: NDArray[np.float64], law: EntropyLaw | None) -> str:
    key, title = "law-curve", "Reward against entropy"
    shown = np.unique(np.linspace(0, len(entropies) - 1, min(_MAX_DOTS, len(entropies))).round().astype(int))
    dots = entropies[shown], rewards[shown]
    if law is None:
        frame = Frame(*dots, x_label="entropy (nats)", y_label="reward")
        shapes = frame.dots(*dots, "dot")
        described = [f"{count(len(entropies), 'logged step')}, without a curve: the law is refused."]
        return figure(key, title, svg(key, title, frame.axes() + shapes), described=described)
    xs = np.linspace(0.0, float(np.nanmax(np.where(np.isfinite(entropies), entropies, np.nan))), 100)
    curve = law.b - law.a * np.exp(xs)
    # An interval far wider than the rewards would flatten everything else; the text has its ends.
    heights = np.concatenate([rewards[np.isfinite(rewards)], curve])
    room = float(np.ptp(heights))
    low, high = np.clip(
        [law.intervals.ceiling.low, law.intervals.ceiling.high], heights.min() - room, heights.max() + room
    )
    frame = Frame(
        np.concatenate([dots[0], xs]),
        np.concatenate([heights, [low, high]]),
        x_label="entropy (nats)",
        y_label="reward",
    )
    ends = np.array([0.0, xs[-1]])
    shapes = (
        frame.band(ends, np.full(2, low), np.full(2, high), "band")
        + frame.axes()
        + frame.level(law.ceiling, "ceiling")
        + frame.dots(*dots, "dot")
        + frame.line(xs, curve, "line s0")
    )
    interval = _ends(law.intervals.ceiling.low, law.intervals.ceiling.high)
    described = [
        f"{count(law.num_points, 'logged step')}. The curve is R = {number(law.b)} - {number(law.a)} exp(H). It meets"
        f" entropy 0 at the ceiling, a reward of {number(law.ceiling)}, 95 % interval {interval} (shaded)."
    ]
    return figure(key, title, legend(["fitted law", "ceiling"]) + svg(key, title, shapes), described=described, note="")


def _coefficients(law: EntropyLaw) -> str:
    return table(
        ["quantity", "value", "95 % interval"],
        _rows(law),
        caption=f"The law, fitted to {count(law.num_points, 'logged step')}",
    )


def _rows(law: EntropyLaw) -> Iterator[list[str]]:
    for name, value, interval in (
        ("a", law.a, law.intervals.a),
        ("b", law.b, law.intervals.b),
        ("ceiling b - a", law.ceiling, law.intervals.ceiling),
    ):
        yield [name, number(value), _ends(interval.low, interval.high)]
    yield ["root mean square of the residuals", number(law.rmse), ""]
    if law.diagnostics is not None:
        yield ["correlation of neighbouring residuals", number(law.diagnostics.autocorrelation, digits=3), ""]
    if law.early is not None:
        early = law.early
        yield [
            f"ceiling from the first {count(early.num_points, 'step')}",
            number(early.ceiling),
            _ends(early.ceiling_interval.low, early.ceiling_interval.high),
        ]
        yield ["root mean square error of that on the other steps", number(early.rmse), ""]


def _ends(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"
