"""A command on a pseudo-terminal of its own, and what a person would see there.

The screen understands exactly those sequences that the viewer uses. Any other control character is kept in `strange`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import re
import select
import shlex
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.cells import cell_len

from tests.support.forked import PRELOAD, ROOT, context, start_fork_server
from tests.support.forked_program import Program, run_program

_SEQUENCE = re.compile(r"\x1b\[(?P<values>[?0-9;]*)(?P<kind>[A-Za-z])")
_UNFINISHED = re.compile(r"\x1b(\[[?0-9;]*)?")
_MODES = {"?1049h", "?1049l", "?7h", "?7l", "?25h", "?25l"}
DEADLINE_S = 60


class Screen:
    """Cells that a program has drawn.

    looks: the attributes of each cell, as in "1;4".
    modes: the last setting of each mode, as in "?25": "h".
    strange: control characters and sequences that no viewer may send.
    """

    def __init__(self, width: int, height: int) -> None:
        self.modes: dict[str, str] = {}
        self.strange: list[str] = []
        self.cursor = (0, 0)
        self._look = self._rest = ""
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.cursor = (0, 0)
        self._clear(0, 0)

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._cells]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def look_of(self, words: str) -> str:
        """Attributes of the first cell of the first line that holds the words."""
        row = next(i for i, line in enumerate(self.lines) if words in line)
        return self._looks[row]["".join(self._cells[row]).index(words)]

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        while text:
            if found := _SEQUENCE.match(text):
                self._obey(found["values"], found["kind"], found[0])
                text = text[found.end() :]
            elif _UNFINISHED.fullmatch(text):
                self._rest = text
                return
            else:
                self._put(text[0])
                text = text[1:]

    def _obey(self, values: str, kind: str, whole: str) -> None:
        row, column = self.cursor
        match kind:
            case "H":
                # Lines for a larger screen may still be under way when it has become smaller.
                below, right = (int(part) - 1 for part in values.split(";"))
                self.cursor = (min(below, self.height - 1), min(right, self.width - 1))
            case "m":
                self._look = "" if values in ("", "0") else values
            case "K" if not values:
                self._cells[row][column:] = [" "] * (self.width - column)
            case "J" if values == "2":
                self._clear(0, 0)
            case "J" if not values:
                self._clear(row, column)
            case "h" | "l" if values + kind in _MODES:
                self.modes[values] = kind
            case _:
                self.strange.append(whole)

    def _put(self, char: str) -> None:
        row, column = self.cursor
        if char == "\r":
            self.cursor = (row, 0)
        elif char == "\n" and row + 1 < self.height:
            self.cursor = (row + 1, column)
        elif char == "\n":
            self._cells = [*self._cells[1:], [" "] * self.width]
            self._looks = [*self._looks[1:], [""] * self.width]
        elif not char.isprintable():
            self.strange.append(char)
        elif size := cell_len(char):
            column = min(column, self.width - size)  # no automatic line breaks
            self._cells[row][column : column + size] = [char, *[""] * (size - 1)]
            self._looks[row][column : column + size] = [self._look] * size
            self.cursor = (row, column + size)

    def _clear(self, row: int, column: int) -> None:
        if (row, column) == (0, 0):
            self._cells = [[" "] * self.width for _ in range(self.height)]
            self._looks = [[""] * self.width for _ in range(self.height)]
            return
        self._cells[row][column:] = [" "] * (self.width - column)
        self._cells[row + 1 :] = [[" "] * self.width for _ in self._cells[row + 1 :]]


class TerminalCommand:
    """A running `python -m megacov ...` with a keyboard and a screen. `mode` is the terminal's at the moment."""

    def __init__(
        self,
        *arguments: str,
        width: int,
        height: int,
        ignored: tuple[int, ...],
        shell: bool,
        **environment: str,
    ) -> None:
        self._master, self._slave = os.openpty()
        self.screen = Screen(width, height)
        self.resize(width, height)
        self.first_mode = self.mode
        start_fork_server()
        values = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "", "NO_COLOR": "", "PS1": "$ ", **environment}
        place = (("-m", "megacov", *arguments), values, os.ttyname(self._slave), ignored, shell)
        self._process = context.Process(target=_become_terminal_command, args=place)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def mode(self) -> list[Any]:
        """Attributes of the terminal."""
        return termios.tcgetattr(self._slave)

    def resize(self, width: int, height: int) -> None:
        """Change the size, as a window manager does: a signal goes to the program."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.screen.resize(width, height)

    def press(self, keys: str, until: str | Callable[[Screen], bool]) -> str:
        """Press keys, and wait until the screen shows words or meets a condition; returns its text."""
        os.write(self._master, keys.encode())
        return self.wait(until)

    def wait(self, until: str | Callable[[Screen], bool]) -> str:
        """Wait until the screen shows words or meets a condition; returns its text."""
        is_met = (lambda screen: until in screen.text) if isinstance(until, str) else until
        deadline = time.monotonic() + DEADLINE_S
        while not is_met(self.screen):
            assert time.monotonic() < deadline, f"no {until!r} in time:\n{self.screen.text}"
            assert self._read(0.2) or self._process.exitcode is None, f"ended:\n{self.screen.text}"
        return self.screen.text

    def hang_up(self) -> None:
        """Take the terminal away, as a lost connection does."""
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1

    def end(self) -> int:
        """Wait until the command has ended, and read what it wrote; returns its exit code, or minus the signal."""
        deadline = time.monotonic() + DEADLINE_S
        while self._process.exitcode is None:
            assert time.monotonic() < deadline, f"did not end in time:\n{self.screen.text}"
            if self._master < 0 or not self._read(0.05):
                self._process.join(0.05)
        while self._master >= 0 and self._read(0.0):
            pass
        return self._process.exitcode

    def close(self) -> None:
        """End whatever is left."""
        if self._process.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)
            self._process.join()
        if self._master >= 0:
            self.hang_up()

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        self.screen.feed(os.read(self._master, 65536).decode())
        return True


@contextlib.contextmanager
def on_terminal(
    *arguments: str,
    width: int = 80,
    height: int = 24,
    ignored: tuple[int, ...] = (),
    shell: bool = False,
    **environment: str,
) -> Iterator[TerminalCommand]:
    """A `megacov` on a terminal of a size.

    `ignored` signals are so from the start, as under nohup; with `shell`, a bash with job control starts the command.
    """
    command = TerminalCommand(*arguments, width=width, height=height, ignored=ignored, shell=shell, **environment)
    try:
        yield command
    finally:
        command.close()


def _become_terminal_command(
    argv: tuple[str, ...], environment: dict[str, str], tty: str, ignored: tuple[int, ...], has_shell: bool
) -> NoReturn:
    os.setsid()
    descriptor = os.open(tty, os.O_RDWR)  # the first terminal that a session opens controls it
    if has_shell:
        for stream in range(3):
            os.dup2(descriptor, stream)
        os.chdir(ROOT)
        # What an interactive shell does before its first prompt; the keys go to what has the terminal.
        first = f"unset PROMPT_COMMAND; {shlex.join((sys.executable, *argv))}"
        options = ("--norc", "--noprofile", "--noediting", "-i")
        os.execvpe("bash", ["bash", *options], {**environment, "PYTHONPATH": str(ROOT), "PROMPT_COMMAND": first})
    os.dup2(descriptor, sys.stderr.fileno())
    importlib.import_module(PRELOAD)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    run_program(Program(argv, str(ROOT), environment, (descriptor, descriptor, descriptor)))
