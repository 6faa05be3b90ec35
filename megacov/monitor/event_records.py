"""The records of TensorBoard event files, and whether they are as they were written.

A record is its length (8 bytes), the length's checksum (4), an Event, and the Event's checksum (4).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

HEAD_BYTES, TAIL_BYTES = 12, 4
"""Bytes of a record before its Event, and after it."""

_BLOCK_BYTES = 1 << 22
# Longer Events, such as pictures and long texts, are checked where a crash damages a file: near its end.
_SHORT_BYTES = 1 << 10
_END_BYTES = 1 << 16
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


class EventRecords:
    """Iterates once over the records of an event file, up to its end or to the first that is not as it was written.

    Checksums of lengths are compared for all records; those of Events for all of at most 1 KB, which scalars are, and
    for the last 64 KB of the file. What a writer appends after this object was made is not read.

    Args:
        file: event file, opened in binary mode; the caller closes it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        """Size of the file. [bytes]"""
        self.end = 0
        """Where the last record ends that was yielded. [bytes]"""
        self.is_damaged = False
        """Whether a checksum differs at `end`. If none does and `end` is not `size`, the file ends within a record."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield records with their lengths and checksums, as they are in the file."""
        self._file.seek(0)
        content, num_wanted = b"", _BLOCK_BYTES
        while self.end + len(content) < self.size:
            content += self._file.read(min(num_wanted, self.size - self.end - len(content)))
            edges = _edges(content)
            num_intact = self._count_intact(content, np.array(edges, dtype=np.int64))
            for start, end in pairwise(edges[: num_intact + 1]):
                self.end += end - start
                yield content[start:end]
            content = content[edges[num_intact] :]
            is_head_wrong = len(content) >= HEAD_BYTES and _checksum(content[:8]) != content[8:HEAD_BYTES]
            self.is_damaged = num_intact < len(edges) - 1 or is_head_wrong
            num_missing = _record_length(content) - len(content) if len(content) >= HEAD_BYTES else 0
            if self.is_damaged or self._file.tell() >= self.size or self.end + len(content) + num_missing > self.size:
                return
            num_wanted = max(num_missing, _BLOCK_BYTES)

    def _count_intact(self, content: bytes, edges: NDArray[np.int64]) -> int:
        """Number of records before the first whose checksums differ."""
        starts, ends = edges[:-1], edges[1:]
        buffer = np.frombuffer(content, np.uint8)
        lengths = ends - starts - HEAD_BYTES - TAIL_BYTES
        is_wrong = _checksums(buffer, starts, np.full_like(starts, 8)) != _stored(buffer, starts + 8)
        is_short = (lengths <= _SHORT_BYTES) & ~is_wrong
        found = _checksums(buffer, starts[is_short] + HEAD_BYTES, lengths[is_short])
        is_wrong[is_short] = found != _stored(buffer, ends[is_short] - TAIL_BYTES)
        is_near_end = self.end + ends > self.size - _END_BYTES
        for index in np.flatnonzero(is_near_end & ~is_short & ~is_wrong):
            data = content[starts[index] + HEAD_BYTES : ends[index] - TAIL_BYTES]
            is_wrong[index] = _checksum(data) != content[ends[index] - TAIL_BYTES : ends[index]]
        wrong = np.flatnonzero(is_wrong)
        return int(wrong[0]) if len(wrong) else len(starts)


def parse_event(record: bytes) -> Event:
    """The Event of a record; raises protobuf's DecodeError if there is none."""
    return Event.FromString(record[HEAD_BYTES:-TAIL_BYTES])


def _edges(content: bytes) -> list[int]:
    """Where the whole records of a block begin, and where the last ends, by the lengths that they state."""
    edges, end = [0], 0
    while end + HEAD_BYTES <= len(content):
        end += HEAD_BYTES + _LENGTH.unpack_from(content, end)[0] + TAIL_BYTES
        if end > len(content):
            break
        edges.append(end)
    return edges


def _record_length(head: bytes) -> int:
    return HEAD_BYTES + int(_LENGTH.unpack_from(head)[0]) + TAIL_BYTES


def _checksum(data: bytes) -> bytes:
    return _CHECKSUM.pack(masked_crc32c(data))


def _stored(buffer: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Numbers of 4 bytes, the lowest first."""
    parts = (buffer[positions + index].astype(np.uint32) << np.uint32(8 * index) for index in range(4))
    return np.bitwise_or.reduce(list(parts))


def _make_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_TABLE = _make_table()


def _checksums(buffer: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Masked CRC-32C of many ranges of bytes at once, as TensorBoard computes it: a byte of each range at a time.

    Args:
        buffer: [n] bytes.
        starts: [r] where each range begins.
        lengths: [r] number of bytes.

    Returns:
        [r] checksums.
    """
    order = np.argsort(-lengths, kind="stable")
    positions, descending = starts[order], -lengths[order]
    sums = np.full(len(starts), 0xFFFFFFFF, dtype=np.uint32)
    for index in range(-int(descending[0]) if len(descending) else 0):
        longer = int(np.searchsorted(descending, -index))
        part = sums[:longer]
        sums[:longer] = _TABLE[(part ^ buffer[positions[:longer] + index]) & 0xFF] ^ (part >> np.uint32(8))
    sums = ~sums
    masked = np.empty_like(sums)
    masked[order] = ((sums >> np.uint32(15)) | (sums << np.uint32(17))) + np.uint32(0xA282EAD8)
    return masked
