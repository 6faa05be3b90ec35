"""Messages between the trainer and a verifier's process: JSON objects, each behind its length in bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    content = json.dumps(message).encode()
    return _LENGTH.pack(len(content)) + content


class FrameBuffer:
    """Puts messages together from the pieces in which they arrive."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._bytes = bytearray()

    def feed(self, piece: bytes) -> None:
        """Add bytes."""
        self._bytes += piece

    def pop(self) -> dict[str, Any] | None:
        """The next message, or None if it is not complete; raises ValueError for bytes that are no message."""
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        message: dict[str, Any] = json.loads(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return message
