"""The loop of the viewer: draw, wait for keys, do what they ask for."""

from __future__ import annotations

import signal
import termios

from rich.color import ColorSystem

from megacov.cli.viewer.controls import Controls
from megacov.cli.viewer.paint import Painter
from megacov.cli.viewer.screen import render
from megacov.cli.viewer.terminal import EndedBySignal, Terminal
from megacov.cli.viewer.viewer import Viewer
from megacov.monitor.visible_text import visible


def browse(viewer: Viewer, terminal: Terminal, colours: ColorSystem | None) -> None:
    """Show samples until the reader quits or the terminal is gone.

    A signal that ends the viewer ends this process as it would have without one, once the terminal is as it was.

    Args:
        viewer: what to show.
        terminal: where.
        colours: those that it has, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    controls = Controls(viewer)
    try:
        with terminal.opened():
            _browse(controls, terminal, colours)
    except EndedBySignal as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        signal.raise_signal(ended.number)


def _browse(controls: Controls, terminal: Terminal, colours: ColorSystem | None) -> None:
    viewer = controls.viewer
    painters = {True: Painter(colours or ColorSystem.EIGHT_BIT), False: Painter(None)}
    keys: list[str] | None = []
    while keys is not None and all(map(controls.press, keys)):
        width, height = terminal.size()
        entry = controls.entry
        typed = visible(f"{entry.label}{entry.text}", ascii_only=viewer.ascii_only) if entry is not None else None
        screen = render(viewer, width, height, entry=typed, has_help=controls.has_help)
        try:
            terminal.show([painters[viewer.has_colour].paint(line) for line in screen.lines], screen.cursor)
            keys = terminal.keys()
        except (OSError, termios.error):  # the terminal is gone
            return
