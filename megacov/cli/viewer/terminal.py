"""The terminal: its mode, its size, its bytes and its signals. Whatever ends the viewer, the mode is put back."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import termios
from collections.abc import Iterator
from types import FrameType

from megacov.cli.viewer.keys import KeyDecoder

_ENTER = "\x1b[?1049h\x1b[?7l\x1b[2J"  # the other screen, without automatic line breaks, empty
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_ESCAPE_S = 0.05
"""How long the rest of a key's bytes may take."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class EndedBySignal(BaseException):
    """A signal asks the viewer to end; it passes every handler of errors on its way."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(number)
        self.number = number


class Terminal:
    """A terminal that is drawn on line by line and read key by key."""

    def __init__(self, in_fd: int, out_fd: int) -> None:
        """Take the descriptors of a terminal; nothing changes before `opened`."""
        self._in, self._out = in_fd, out_fd
        self._keys = KeyDecoder()
        self._shown: list[str] = []
        self._mode: list[object] | None = None
        self._is_ending = False
        self._wake, self._wake_in = -1, -1

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Draw on the terminal's other screen, and put everything back at the end.

        Raises:
            EndedBySignal: SIGTERM, SIGHUP or SIGQUIT came.
            KeyboardInterrupt: SIGINT came.
        """
        self._wake, self._wake_in = os.pipe()
        for end in (self._wake, self._wake_in):
            os.set_blocking(end, False)
        wakeup_before = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        handlers = {
            **dict.fromkeys(_ENDING, self._end),
            signal.SIGTSTP: self._stop,
            signal.SIGWINCH: lambda number, frame: None,
        }
        # A signal that is ignored, as under nohup, stays so.
        before = {
            number: signal.signal(number, handler)
            for number, handler in handlers.items()
            if signal.getsignal(number) != signal.SIG_IGN
        }
        atexit.register(self._restore)  # should an exception find its way around the lines below
        try:
            self._prepare()
            yield
        finally:
            self._is_ending = True
            self._restore()
            atexit.unregister(self._restore)
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_before)
            os.close(self._wake)
            os.close(self._wake_in)

    def size(self) -> tuple[int, int]:
        """Cells of a line, and lines; 80 and 24 if the terminal does not know."""
        try:
            width, height = os.get_terminal_size(self._out)
        except OSError:
            width = height = 0
        return width or 80, height or 24

    def show(self, lines: list[str], cursor: tuple[int, int] | None) -> None:
        """Draw lines, with the cursor at a row and a column, or hidden. Lines that are there already are not sent."""
        parts = ["\x1b[?25l"]
        for row, line in enumerate(lines):
            if row >= len(self._shown) or self._shown[row] != line:
                parts.append(f"\x1b[{row + 1};1H{line}\x1b[0m\x1b[K")
        if len(self._shown) > len(lines):
            parts.append("\x1b[J")
        if cursor is not None:
            parts.append(f"\x1b[{cursor[0] + 1};{cursor[1] + 1}H\x1b[?25h")
        self._shown = lines
        self._write("".join(parts))

    def forget(self) -> None:
        """Draw everything anew next time, as after a change of size."""
        self._shown = []
        self._write("\x1b[2J")

    def keys(self) -> list[str] | None:
        """Wait for keys.

        Returns:
            Keys; an empty list if the terminal must be drawn anew; None if it has nothing more to say.
        """
        while True:
            ready, _, _ = select.select(
                [self._in, self._wake], [], [], _ESCAPE_S if self._keys.is_in_sequence else None
            )
            if self._wake in ready:
                os.read(self._wake, 4096)
                self.forget()
                return []
            if self._in not in ready:
                if keys := self._keys.flush():
                    return keys
                continue
            try:
                data = os.read(self._in, 4096)
            except OSError:  # the other side has hung up
                return None
            if not data:
                return None
            if keys := self._keys.feed(data):
                return keys

    def has_input(self) -> bool:
        """Whether a key waits to be read."""
        return bool(select.select([self._in], [], [], 0)[0])

    def _prepare(self) -> None:
        """Keys one at a time and unseen; signals and line ends stay as they are; Ctrl-S and Ctrl-Q are only keys."""
        self._mode = termios.tcgetattr(self._in)
        mode = termios.tcgetattr(self._in)
        mode[0] &= ~termios.IXON
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._in, termios.TCSADRAIN, mode)
        self._write(_ENTER)
        self._shown = []

    def _restore(self) -> None:
        """Put the terminal back; a terminal that is gone needs nothing."""
        mode, self._mode = self._mode, None
        if mode is None:
            return
        with contextlib.suppress(OSError, termios.error):
            # Output that nobody reads must not hold up the end.
            termios.tcflush(self._out, termios.TCOFLUSH)
            self._write(_LEAVE)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, mode)  # type: ignore[arg-type]

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:  # somebody else has made the terminal non-blocking
                select.select([], [self._out], [])

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise EndedBySignal(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Leave the terminal to the shell (Ctrl-Z), and take it again when the shell lets the viewer go on."""
        self._restore()
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        self._prepare()
