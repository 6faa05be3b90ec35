"""Keys and what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from megacov.cli.viewer.viewer import Viewer
from megacov.monitor.overlays import OVERLAYS
from megacov.monitor.sample_filter import SampleFilter


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that the reader types, and who gets it."""

    label: str
    text: str
    done: Callable[[str], None]


class Controls:
    """Does what keys ask for.

    entry: the line that is being typed, if any.
    has_help: whether the keys are shown.
    """

    def __init__(self, viewer: Viewer) -> None:
        """Steer a viewer."""
        self.viewer = viewer
        self.entry: Entry | None = None
        self.has_help = False
        self._actions: dict[str, Callable[[], None]] = {
            **dict.fromkeys(("right", "l"), lambda: viewer.move_token(1)),
            **dict.fromkeys(("left", "h"), lambda: viewer.move_token(-1)),
            **dict.fromkeys(("down", "j"), lambda: viewer.move_line(1)),
            **dict.fromkeys(("up", "k"), lambda: viewer.move_line(-1)),
            **dict.fromkeys(("page down", " "), lambda: viewer.move_page(1)),
            **dict.fromkeys(("page up", "b"), lambda: viewer.move_page(-1)),
            **dict.fromkeys(("home", "g"), lambda: viewer.move_to_end(-1)),
            **dict.fromkeys(("end", "G"), lambda: viewer.move_to_end(1)),
            ".": lambda: viewer.move_notable(1),
            ",": lambda: viewer.move_notable(-1),
            "n": lambda: viewer.move_sample(1),
            "p": lambda: viewer.move_sample(-1),
            "]": lambda: viewer.move_step(1),
            "[": lambda: viewer.move_step(-1),
            "o": viewer.next_overlay,
            **{
                str(number): lambda name=name: viewer.show_overlay(name)  # type: ignore[misc]
                for number, name in enumerate(OVERLAYS, start=1)
            },
            "s": viewer.switch_scale,
            "c": viewer.switch_colour,
            "f": lambda: self._ask("filter: ", str(viewer.browser.kept), viewer.filter_by),
            "/": lambda: self._ask("search: ", viewer.browser.kept.text, viewer.search),
            "x": lambda: viewer.filter_by(str(SampleFilter())),
            "r": viewer.reload,
            "?": self._show_help,
        }

    def press(self, key: str) -> bool:
        """Do what a key asks for.

        Args:
            key: as `KeyDecoder` names it.

        Returns:
            Whether the viewer stays open.
        """
        if self.entry is not None:
            self._type(self.entry, key)
            return True
        self.viewer.message = ""
        if self.has_help:
            self.has_help = False
            return True
        if key in ("q", "end of input"):
            return False
        if key in self._actions:
            self._actions[key]()
        return True

    def _ask(self, label: str, text: str, done: Callable[[str], None]) -> None:
        self.entry = Entry(label, text, done)

    def _show_help(self) -> None:
        self.has_help = True

    def _type(self, entry: Entry, key: str) -> None:
        if key == "enter":
            self.entry = None
            entry.done(entry.text)
        elif key in ("escape", "end of input"):
            self.entry = None
        elif key == "backspace":
            self.entry = replace(entry, text=entry.text[:-1])
        elif key == "clear":
            self.entry = replace(entry, text="")
        elif len(key) == 1:
            self.entry = replace(entry, text=entry.text + key)
