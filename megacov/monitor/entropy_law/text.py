"""The law in words and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from megacov.monitor.entropy_law.diagnostics import Diagnostics, LeftOut
from megacov.monitor.entropy_law.estimate import Interval
from megacov.monitor.entropy_law.law import EntropyLaw
from megacov.monitor.entropy_law.sizes import SizeLine, SizePrediction
from megacov.monitor.entropy_law.sources import Source

_NAME_WIDTH = 12


def describe(source: Source, law: EntropyLaw, *, early: float) -> Iterator[str]:
    """Yield the lines that tell a person what a run's law is.

    Args:
        source: the run.
        law: its fit.
        early: share of the points that the early prediction was asked to use.

    Yields:
        Lines without their line end.
    """
    curve = source.curve
    averaged = f", means of {curve.entropies_per_step} values" if curve.entropies_per_step > 1 else ""
    yield f"{source.name}: {curve.reward_tag} against {curve.entropy_tag}{averaged}"
    for problem in source.problems:
        yield _row("note", problem)
    yield _row("points", f"{law.num_points}, steps {curve.steps[0]} to {curve.steps[-1]}")
    if law.curve is not None and law.diagnostics is not None:
        yield _row("a", _with_interval(law.a, law.intervals.a))
        yield _row("b", _with_interval(law.b, law.intervals.b))
        yield _row("ceiling", f"{_with_interval(law.ceiling, law.intervals.ceiling)}: b - a, the reward at entropy 0")
        yield _row("RMSE", f"{law.rmse:.4f}")
        yield from _now(source, law)
        yield _row("early", _early(law, early))
        yield from _checks(law.diagnostics, source)
    yield _row("verdict", f"{law.verdict.outcome}: {law.verdict.sentence}")
    for reason in law.verdict.reasons:
        yield _row("", reason.sentence)


def describe_sizes(prediction: SizePrediction) -> Iterator[str]:
    """Yield the lines of a prediction over model sizes.

    Args:
        prediction: lines through several runs.

    Yields:
        Lines without their line end.
    """
    sizes = ", ".join(f"{size:g}" for size in prediction.from_sizes)
    yield f"size {prediction.size:g}, predicted from sizes {sizes} by lines over the logarithm of the size"
    for name in ("a", "b", "ceiling"):
        line: SizeLine = getattr(prediction, name)
        interval = "no interval from two runs" if line.interval is None else f"95 % {_show(line.interval)}"
        error = (
            "" if line.error is None else f"; fitted {line.value - line.error:.3f}, so the error is {line.error:+.3f}"
        )
        yield _row(name, f"{line.value:.3f} ({interval}), {line.per_tenfold:+.3f} for ten times the size{error}")


def to_json(source: Source, law: EntropyLaw) -> dict[str, Any]:
    """A run's law as plain values; what is not finite is None."""
    values = {
        field.name: getattr(law, field.name)
        for field in dataclasses.fields(law)
        if field.name not in ("curve", "verdict")
    }
    plain: dict[str, Any] = {
        "source": source.name,
        "entropy_tag": source.curve.entropy_tag,
        "reward_tag": source.curve.reward_tag,
        "first_step": int(source.curve.steps[0]),
        "last_step": int(source.curve.steps[-1]),
        "problems": list(source.problems),
        **{name: _plain(value) for name, value in values.items()},
        "verdict": {**dataclasses.asdict(law.verdict), "sentence": law.verdict.sentence},
    }
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _now(source: Source, law: EntropyLaw) -> Iterator[str]:
    """How far the last tenth of the run is from the ceiling; one step alone is noise."""
    curve = source.curve
    is_finite = np.isfinite(curve.entropies) & np.isfinite(curve.rewards)
    tenth = max(int(is_finite.sum()) // 10, 1)
    entropy, reward = (float(values[is_finite][-tenth:].mean()) for values in (curve.entropies, curve.rewards))
    left = law.ceiling - reward
    where = f"{left:.3f} below" if left >= 0 else f"{-left:.3f} above"
    yield _row("now", f"reward {reward:.3f} at entropy {entropy:.3f}, {where} the ceiling (last {tenth} points)")


def _early(law: EntropyLaw, share: float) -> str:
    early = law.early
    if early is None:
        return f"the first {100 * share:g} % are too few points, or have one entropy only"
    return (
        f"the first {early.num_points} points predict the others with RMSE {early.rmse:.4f}, the last one with error "
        f"{early.final_error:+.4f}; their ceiling is {_with_interval(early.ceiling, early.ceiling_interval)}"
    )


def _checks(checks: Diagnostics, source: Source) -> Iterator[str]:
    halves = "" if checks.halves_p is None else f", equal halves p {checks.halves_p:.2g}"
    yield _row(
        "residuals",
        f"correlation of neighbours {checks.autocorrelation:.2f}; without it {checks.num_runs} runs, "
        f"{checks.expected_runs:.0f} expected, p {checks.runs_p:.2g}; straight over exp(H) p {checks.curvature_p:.2g}"
        f"{halves}",
    )
    one, block = checks.one_left_out, checks.block_left_out
    yield _row(
        "left out",
        f"{_left_out(one, source)} moves the ceiling by {one.change:+.4f}, {_left_out(block, source)} by "
        f"{block.change:+.4f}; no other one or tenth moves it more",
    )


def _left_out(part: LeftOut, source: Source) -> str:
    curve = source.curve
    steps = curve.steps[np.isfinite(curve.entropies) & np.isfinite(curve.rewards)]
    first, last = steps[part.first], steps[part.last]
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _row(name: str, text: str) -> str:
    return f"  {name:<{_NAME_WIDTH}}{text}"


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.4f} (95 % {_show(interval)})"


def _show(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"
