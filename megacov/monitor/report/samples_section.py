"""The browser of samples: its controls as HTML, and its data for assets/report.js."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megacov.monitor.overlays import OVERLAYS, Overlay, Scale, fixed_scale, quantile_scale
from megacov.monitor.report.assets import asset
from megacov.monitor.report.samples import Samples, length_of
from megacov.monitor.report.text import count, escape, number, show_hidden, to_script
from megacov.monitor.samples import ShownSample, TokenValues

_DIGITS = 4
"""Significant digits of a token's values: those of the files, so that a level here is the level elsewhere."""

_RANGES = {"step": "Step", "reward": "Reward", "length": "Length (tokens)"}


def samples_section(samples: Samples) -> str:
    """The browser, and the data that it shows."""
    return asset("samples.html").format(
        amount=escape(_amount(samples)),
        filters="".join(_range(name, title) for name, title in _RANGES.items()),
        overlays="".join(_choice(overlay) for overlay in OVERLAYS.values()),
        data=to_script(samples_data(samples.shown)),
    )


def samples_data(shown: Sequence[ShownSample]) -> dict[str, Any]:
    """Responses and scales for the browser, as values for JSON.

    Args:
        shown: responses in the order of the list.

    Returns:
        `overlays`: name, title, unit, and edges and legend of each scale. `strings`: text of each different token.
        `samples`: each with its tokens as places in `strings`, and lists of values; null for what is not known.
    """
    strings: dict[str, int] = {}
    return {
        "overlays": [_overlay(overlay, shown) for overlay in OVERLAYS.values()],
        "samples": [_sample(sample, title, strings) for sample, title in zip(shown, _titles(shown), strict=True)],
        "strings": [show_hidden(text) for text in strings],
    }


def _amount(samples: Samples) -> str:
    held = count(len(samples.shown), "response")
    tokens = count(sum(map(length_of, samples.shown)), "token")
    if len(samples.shown) == samples.num_samples:
        return f"This page holds all of RUN/samples: {held} with {tokens}."
    num_steps = len({sample.step for sample in samples.shown})
    steps = f"{num_steps} equally spaced steps" if num_steps > 1 else "the last step"
    return (
        f"This page holds {held} with {tokens}, of {steps}. RUN/samples has {count(samples.num_samples, 'response')}"
        f" with {count(samples.num_tokens, 'token')}: megacov samples shows them all, and megacov report --max-tokens"
        " takes more of them in here."
    )


def _overlay(overlay: Overlay, shown: Sequence[ShownSample]) -> dict[str, Any]:
    values = (value for sample in shown for value in (_values(sample.tokens, overlay.name) if sample.tokens else ()))
    return {
        "name": overlay.name,
        "title": overlay.title,
        "unit": overlay.unit,
        "signed": overlay.is_signed,
        "scales": {"fixed": _scale(fixed_scale(overlay)), "quantiles": _scale(quantile_scale(overlay, values))},
    }


def _scale(scale: Scale) -> dict[str, Any]:
    return {"edges": list(scale.edges), "legend": [[band.level, band.text] for band in scale.legend()]}


def _titles(shown: Sequence[ShownSample]) -> Iterator[str]:
    """Name each response by its row in the rollout batch, or by its place in a file that has no rows."""
    places: dict[int, int] = {}
    for sample in shown:
        places[sample.step] = places.get(sample.step, 0) + 1
        which = f"line {places[sample.step]}" if sample.sample is None else f"row {sample.sample}"
        yield f"Step {sample.step}, {which}"


def _sample(sample: ShownSample, title: str, strings: dict[str, int]) -> dict[str, Any]:
    tokens = sample.tokens
    return {
        "title": title,
        "step": sample.step,
        "reward": _short(sample.reward),
        "length": length_of(sample),
        "truncated": sample.finish_reason == "length",
        "notable": [show_hidden(each) for each in sample.notable],
        "facts": [[name, show_hidden(value)] for name, value in _facts(sample).items() if value],
        "prompt": show_hidden(sample.prompt),
        "answer": show_hidden(sample.answer),
        "response": show_hidden(sample.response) if tokens is None else None,
        "tokens": None if tokens is None else [strings.setdefault(text, len(strings)) for text in tokens.texts],
        "values": None
        if tokens is None
        else {
            name: _values(tokens, name)
            for name in ("log_probs", "entropy", "covariance", "mismatch", "selected", "kept")
        },
    }


def _facts(sample: ShownSample) -> Mapping[str, str]:
    return {
        "reward": number(sample.reward),
        "length": count(length_of(sample), "token"),
        "ended by": {"length": "the limit of length", "stop": "itself"}.get(sample.finish_reason, sample.finish_reason),
        "notable": ", ".join(sample.notable),
        "source": sample.source,
        "weights": ", ".join(sample.versions),
        "staleness": str(sample.staleness) if sample.staleness else "",
    }


def _values(tokens: TokenValues, name: str) -> list[Any]:
    values = getattr(tokens, name)
    if values.dtype == bool:
        return values.astype(int).tolist()
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if abs(short) < 1e15 and short == int(short) else short


def _range(name: str, title: str) -> str:
    return "".join(
        f'<label>{title} {side} <input type="number" step="any" id="{name}-{end}"></label>'
        for side, end in (("from", "low"), ("to", "high"))
    )


def _choice(overlay: Overlay) -> str:
    is_first = " checked" if overlay is next(iter(OVERLAYS.values())) else ""
    return (
        f'<label><input type="radio" name="overlay" value="{escape(overlay.name)}"{is_first}>'
        f" {escape(overlay.title)}</label>"
    )


def level_styles(colours: Iterable[tuple[int, str, str]]) -> str:
    """CSS classes of levels: `l1` to `l4`, and `m1` to `m4` for negative ones.

    Args:
        colours: level, background and text of each.

    Returns:
        CSS.
    """
    return "".join(
        f".{'m' if level < 0 else 'l'}{abs(level)}{{background:{background};color:{text}}}"
        for level, background, text in colours
    )
