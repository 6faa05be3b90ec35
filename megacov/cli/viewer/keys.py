"""Bytes that a terminal sends, as names of keys."""

from __future__ import annotations

import codecs
import re

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[ -~]")
_UNFINISHED = re.compile(r"\x1b(\[[0-?]*[ -/]*|O)?")
_NAMES = {
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x04": "end of input",
    "\x0c": "redraw",
    "\x15": "clear",
    "\x1b": "escape",
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[7~": "home",
    "\x1b[8~": "end",
}


class KeyDecoder:
    """Cuts a stream of bytes into keys, wherever the reads have cut it."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def is_in_sequence(self) -> bool:
        """Whether the bytes so far may be the beginning of a longer key, as Escape's is."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Take bytes.

        Args:
            data: what was read.

        Returns:
            Keys: a name such as "page up", or the character that was typed. Keys without a meaning here are left out.
        """
        text, keys = self._rest + self._decoder.decode(data), []
        while text:
            if _UNFINISHED.fullmatch(text):
                break
            if found := _SEQUENCE.match(text):
                # A cursor key in application mode (ESC O A) is the same key.
                keys.append(_NAMES.get(found[0].replace("\x1bO", "\x1b["), ""))
                text = text[found.end() :]
            else:
                keys.append(_NAMES.get(text[0], text[0] if text[0].isprintable() else ""))
                text = text[1:]
        self._rest = text
        return [key for key in keys if key]

    def flush(self) -> list[str]:
        """The keys of a sequence that has no more bytes: Escape alone, or nothing."""
        rest, self._rest = self._rest, ""
        return ["escape"] if rest == "\x1b" else []
