"""Samples as text for a pipe or a file, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from megacov.cli.viewer.browser import Browser
from megacov.cli.viewer.paint import Painter
from megacov.cli.viewer.screen import Span, facts, legend, no_values, title, token_line
from megacov.cli.viewer.viewer import Viewer
from megacov.monitor.samples import TEXTS, TOKEN_FIELDS, ShownSample


def passing_samples(browser: Browser, limit: int | None) -> Iterator[ShownSample]:
    """Samples that pass, each while the browser looks at it: those of the newest step first."""
    return islice(_all_passing(browser), limit)


def _all_passing(browser: Browser) -> Iterator[ShownSample]:
    while True:
        for index in browser.loaded.passing(browser.kept):
            browser.index = index
            yield browser.sample
        if browser.move_step(-1):
            return


def text_lines(viewer: Viewer, limit: int | None, *, width: int | None, painter: Painter | None) -> Iterator[str]:
    """Samples as lines of text.

    Args:
        viewer: the samples and how to show them; it moves along.
        limit: most samples; None for all.
        width: cells of a line; None breaks lines only where the text does.
        painter: adds looks; None adds nothing, and marks tokens only by their markers.

    Yields:
        Lines without their ends.
    """

    def line(spans: list[Span]) -> str:
        return painter.paint(spans) if painter is not None else "".join(span.text for span in spans)

    for number, sample in enumerate(passing_samples(viewer.browser, limit)):
        viewer.show_current(width)
        if number:
            yield ""
        yield line(title(viewer))
        yield line([Span(facts(sample, "", ascii_only=viewer.ascii_only), "dim")])
        explained = legend(viewer.scale, has_colour=viewer.has_colour)
        yield line(explained if viewer.tokens is not None else [Span(no_values(sample), "dim")])
        for each in viewer.document.lines:
            yield line(token_line(each, viewer))


def json_line(sample: ShownSample) -> str:
    """A sample as one line of JSON: the fields of its file and its step, in ASCII, without control characters."""
    values: dict[str, Any] = {
        "step": sample.step,
        "sample": sample.sample,
        "source": sample.source,
        "prompt": sample.prompt,
        "response": sample.response,
        "answer": sample.answer,
        "reward": sample.reward,
        "notable": list(sample.notable),
        "tokens": sample.num_tokens,
        **({"failure": sample.failure} if sample.failure else {}),
        "finish_reason": sample.finish_reason,
        "versions": list(sample.versions),
        "staleness": sample.staleness,
    }
    if sample.tokens is not None:
        values |= {name: _plain(getattr(sample.tokens, "texts" if name == TEXTS else name)) for name in TOKEN_FIELDS}
    return json.dumps(values).replace("\x7f", "\\u007f")


def _plain(values: Any) -> list[Any]:
    """A list of what JSON has: numbers that are not finite are null, flags are 0 and 1."""
    if isinstance(values, tuple):
        return list(values)
    if values.dtype == np.bool_:
        return [int(value) for value in values.tolist()]
    return [value if math.isfinite(value) else None for value in values.tolist()]
