"""A sample as lines of text: which token stands where. No colours here, so a layout outlives a change of overlay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len

from megacov.monitor.samples import ShownSample
from megacov.monitor.visible_text import visible

Role = Literal["plain", "heading", "dim"]

_NO_TEXT = "<>"
"""Shown for a token that adds nothing to the text, such as the first part of a character."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a line; `token` is its place in the response, or None if it is not of a token."""

    text: str
    role: Role = "plain"
    token: int | None = None


Line = tuple[Piece, ...]


@dataclass(slots=True)
class Document:
    """Prompt, response and answer of a sample in lines of at most `width` cells.

    lines: top to bottom.
    line_of: the line on which each token begins.
    column_of: the cell of that line at which it begins.
    """

    lines: list[Line] = field(default_factory=list)
    line_of: list[int] = field(default_factory=list)
    column_of: list[int] = field(default_factory=list)

    def tokens_in(self, line: int) -> list[int]:
        """Tokens that begin on a line."""
        return [
            piece.token
            for i, piece in enumerate(self.lines[line])
            if piece.token is not None
            and self.line_of[piece.token] == line
            and (i == 0 or self.lines[line][i - 1].token != piece.token)
        ]


def lay_out(
    sample: ShownSample, *, width: int | None, ascii_only: bool, markers: Sequence[str] | None = None
) -> Document:
    """Break a sample into lines.

    Args:
        sample: what to show; without values of tokens, its response is plain text.
        width: cells of a line; None breaks only where the text does.
        ascii_only: whether the terminal shows nothing else.
        markers: one for each token, written before it in brackets if it is not empty; None where there are colours.

    Returns:
        The lines, and where each token begins.
    """
    page = _Page(width, ascii_only)
    page.heading("prompt")
    page.text(sample.prompt)
    page.heading("response")
    if sample.tokens is None:
        page.text(sample.response)
    else:
        for index, text in enumerate(sample.tokens.texts):
            page.token(index, text, markers[index] if markers is not None else "")
        page.end_line()
    if sample.answer:
        page.heading("answer that the verifier has")
        page.text(sample.answer)
    return page.document


class _Page:
    """Fills lines from left to right."""

    def __init__(self, width: int | None, ascii_only: bool) -> None:
        self.document = Document()
        self._width = max(2, width) if width is not None else None
        self._ascii_only = ascii_only
        self._new_line = "\\n" if ascii_only else "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
        self._pieces: list[Piece] = []
        self._column = 0

    def heading(self, title: str) -> None:
        self._put(title, "heading", None)
        self.end_line()

    def text(self, text: str) -> None:
        """Plain text, broken between words where they fit."""
        for line in text.split("\n"):
            for word in re.findall(r"\s*\S+|\s+", line):
                self._put(visible(word, ascii_only=self._ascii_only), "plain", None)
            self.end_line()

    def token(self, index: int, text: str, marker: str) -> None:
        """A token; the ends of lines in it are both shown and obeyed."""
        shown = [visible(part, ascii_only=self._ascii_only) for part in text.split("\n")] if text else [_NO_TEXT]
        shown[:-1] = [part + self._new_line for part in shown[:-1]]
        ends_line = len(shown) > 1 and not shown[-1]
        if ends_line:
            shown.pop()
        if marker:
            shown[0] = f"[{marker}|{shown[0]}"
            shown[-1] += "]"
        for number, part in enumerate(shown):
            self._put(part, "plain", index)
            if number < len(shown) - 1 or ends_line:
                self.end_line()

    def end_line(self) -> None:
        self.document.lines.append(tuple(self._pieces))
        self._pieces, self._column = [], 0

    def _put(self, text: str, role: Role, token: int | None) -> None:
        size = len(text) if text.isascii() else cell_len(text)
        if self._width is not None and self._column + size > self._width:
            if self._column:
                self.end_line()
            while size > self._width:
                fitting = _fitting(text, self._width)
                self._add(text[:fitting], self._width, role, token)
                self.end_line()
                text = text[fitting:]
                size = cell_len(text)
        if text:
            self._add(text, size, role, token)

    def _add(self, text: str, size: int, role: Role, token: int | None) -> None:
        if token is not None and token == len(self.document.line_of):
            self.document.line_of.append(len(self.document.lines))
            self.document.column_of.append(self._column)
        self._pieces.append(Piece(text, role, token))
        self._column += size


def _fitting(text: str, width: int) -> int:
    """Characters of a text that fit into some cells; at least one, so that there is an end."""
    used = 0
    for i, char in enumerate(text):
        used += 1 if char.isascii() else cell_len(char)
        if used > width:
            return max(1, i)
    return len(text)
