"""The state of the viewer: sample, token under the cursor, overlay, what is scrolled into view. Knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megacov.cli.viewer.browser import Browser
from megacov.cli.viewer.layout import Document, lay_out
from megacov.errors import ConfigError
from megacov.monitor.overlays import OVERLAYS, Scale, fixed_scale, is_notable, quantile_scale
from megacov.monitor.sample_filter import parse_filter
from megacov.monitor.samples import ShownSample, TokenValues


class Viewer:
    """One sample and one of its tokens; every method is what a key does.

    message: a sentence for the reader, until the next key.
    """

    def __init__(
        self,
        browser: Browser,
        *,
        overlay: str = "entropy",
        has_quantiles: bool = False,
        has_colour: bool = True,
        ascii_only: bool = False,
    ) -> None:
        """Begin at the browser's sample.

        Args:
            browser: the samples.
            overlay: a name in OVERLAYS.
            has_quantiles: whether levels are quantiles of the step's tokens.
            has_colour: whether levels are colours; they are numbers otherwise.
            ascii_only: whether the terminal shows nothing else.
        """
        self.browser = browser
        self.overlay, self.has_quantiles = overlay, has_quantiles
        self.has_colour, self.ascii_only = has_colour, ascii_only
        self.width: int | None = 80
        self.height = 20
        self.cursor = self.top = 0
        self.message = ""
        self._open()

    @property
    def sample(self) -> ShownSample:
        """The sample that is shown."""
        return self.browser.sample

    @property
    def tokens(self) -> TokenValues | None:
        """Values of its tokens, if its file has them and there are any."""
        tokens = self.sample.tokens
        return tokens if tokens is not None and tokens.texts else None

    def resize(self, width: int, height: int) -> None:
        """Take the size of the text's part of the screen. [cells, lines]"""
        is_new, self.width, self.height = width != self.width, width, max(1, height)
        if is_new:
            self._arrange()
        else:
            self._put_cursor(self.cursor)

    def show_current(self, width: int | None) -> None:
        """Show the browser's sample, laid out in lines of this width; None breaks only where the text does. [cells]"""
        self.width = width
        self._open()

    # Samples

    def move_sample(self, by: int) -> None:
        """Go to the next or previous sample that passes the filter."""
        self._go(self.browser.move(by))

    def move_step(self, by: int) -> None:
        """Go to the next or previous step with a sample that passes."""
        self._go(self.browser.move_step(by))

    def filter_by(self, text: str) -> None:
        """Take the filter that a reader has typed."""
        try:
            self._go(self.browser.set_filter(parse_filter(text)))
        except ConfigError as error:
            self.message = str(error)

    def search(self, text: str) -> None:
        """Look for words on top of the other conditions; an empty text ends that."""
        self._go(self.browser.set_filter(replace(self.browser.kept, text=text.strip())))

    def reload(self) -> None:
        """Read again what the run has written."""
        cursor, before = self.cursor, self.sample
        self.message = self.browser.reload()
        self._open()
        if (self.sample.prompt, self.sample.response) == (before.prompt, before.response):
            self._put_cursor(cursor)

    # Tokens

    def move_token(self, by: int) -> None:
        """Go to the next or previous token."""
        if self.tokens is not None:
            self._put_cursor(self.cursor + by)

    def move_line(self, by: int) -> None:
        """Go to the token above or below; where there is none, scroll."""
        line = self.document.line_of[self.cursor] + by if self.tokens is not None else -1
        tokens = self.document.tokens_in(line) if 0 <= line < len(self.document.lines) else []
        if tokens:
            column = self.document.column_of[self.cursor]
            self._put_cursor(min(tokens, key=lambda token: abs(self.document.column_of[token] - column)))
        else:
            self._scroll(by)

    def move_page(self, by: int) -> None:
        """Scroll by a page and take the cursor along; at the end of the text it goes to the last or first token."""
        before = self.top
        self._scroll(by * max(1, self.height - 1))
        if self.top == before and self.tokens is not None:
            self.cursor = 0 if by < 0 else len(self.tokens.texts) - 1
        view = range(self.top, min(self.top + self.height, len(self.document.lines)))
        if self.tokens is not None and self.document.line_of[self.cursor] not in view:
            for line in view if by > 0 else reversed(view):
                if tokens := self.document.tokens_in(line):
                    self.cursor = tokens[0]
                    return

    def move_to_end(self, by: int) -> None:
        """Go to the first (-1) or last (1) token; the first once more shows the prompt."""
        is_there = self.cursor == 0
        if self.tokens is not None:
            self._put_cursor(0 if by < 0 else len(self.tokens.texts) - 1)
        if by < 0 and (is_there or self.tokens is None):
            self.top = 0
        elif self.tokens is None:
            self._scroll(len(self.document.lines))

    def move_notable(self, by: int) -> None:
        """Go to the next or previous token of the two upper levels, which are the selected ones in that overlay."""
        places = range(self.cursor + by, len(self.levels) if by > 0 else -1, by)
        found = next((token for token in places if is_notable(self.levels[token])), None)
        if found is None:
            kind = "selected" if self.overlay == "selected" else f"notable ({OVERLAYS[self.overlay].name})"
            self.message = f"No {'later' if by > 0 else 'earlier'} token of this sample is {kind}."
        else:
            self._put_cursor(found)

    # Overlays

    def next_overlay(self) -> None:
        """Go to the next overlay."""
        names = list(OVERLAYS)
        self.show_overlay(names[(names.index(self.overlay) + 1) % len(names)])

    def show_overlay(self, name: str) -> None:
        """Colour tokens by another quantity."""
        self.overlay = name
        self._measure()

    def switch_scale(self) -> None:
        """Go from the fixed scale to quantiles of the step, or back."""
        self.has_quantiles = not self.has_quantiles
        self._measure()

    def switch_colour(self) -> None:
        """Go from colours to markers, or back."""
        self.has_colour = not self.has_colour
        self._arrange()

    # What is shown

    def _go(self, why_not: str) -> None:
        self.message = why_not
        if not why_not:
            self._open()
            self.message = next(iter(self.browser.loaded.problems), "")

    def _open(self) -> None:
        self.cursor = self.top = 0
        self._measure()

    def _measure(self) -> None:
        self.scale = make_scale(self.overlay, self.browser.loaded.samples, has_quantiles=self.has_quantiles)
        self.levels = token_levels(self.scale, self.sample)
        self._arrange()

    def _arrange(self) -> None:
        markers = None if self.has_colour else token_markers(self.scale, self.levels, self.sample)
        self.document: Document = lay_out(self.sample, width=self.width, ascii_only=self.ascii_only, markers=markers)
        self._put_cursor(self.cursor)

    def _put_cursor(self, token: int) -> None:
        """Move the cursor to the token, or to the nearest there is, and scroll as little as shows it."""
        if self.tokens is None:
            self._scroll(0)
            return
        self.cursor = min(max(0, token), len(self.tokens.texts) - 1)
        line = self.document.line_of[self.cursor]
        if not self.top <= line < self.top + self.height:
            self.top = line - self.height // 2
        self._scroll(0)

    def _scroll(self, by: int) -> None:
        self.top = max(0, min(self.top + by, len(self.document.lines) - self.height))


def make_scale(overlay: str, samples: Sequence[ShownSample], *, has_quantiles: bool) -> Scale:
    """The scale of an overlay: fixed, or the quantiles of all tokens of the samples."""
    if not has_quantiles:
        return fixed_scale(OVERLAYS[overlay])
    values = [
        value for sample in samples if sample.tokens is not None for value in getattr(sample.tokens, overlay).tolist()
    ]
    return quantile_scale(OVERLAYS[overlay], values)


def token_levels(scale: Scale, sample: ShownSample) -> list[int | None]:
    """Level of each token of a sample; empty where it has no values."""
    return scale.levels(getattr(sample.tokens, scale.overlay.name).tolist()) if sample.tokens is not None else []


def token_markers(scale: Scale, levels: Sequence[int | None], sample: ShownSample) -> list[str]:
    """Marker of each token: its level, and a star if it is selected."""
    if sample.tokens is None:
        return []
    selected = sample.tokens.selected.tolist()
    return [
        scale.marker(level).removesuffix("*") + ("*" if chosen else "")
        for level, chosen in zip(levels, selected, strict=True)
    ]
