"""Do the nodes of a job reach each other, and do their clocks agree? Each node asks every other node over TCP."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

_EXCHANGES = 3
_CONNECT_TIMEOUT_S = 5.0
_RETRY_S = 0.5
_NAME = struct.Struct("64s")
_TIME = struct.Struct("d")


class Peers(NamedTuple):
    """The other nodes, as seen from one.

    offsets: clocks of the nodes that were reached, minus this node's. [s]
    unreachable: names of the nodes that were not reached.
    """

    offsets: Mapping[str, float]
    unreachable: tuple[str, ...]


def meet_peers(name: str, addresses: Mapping[str, str], *, port: int, deadline_s: float) -> Peers:
    """Ask every other node for its time, and answer the others' questions. All nodes call this at about the same time.

    Args:
        name: name of this node.
        addresses: addresses of all nodes by name.
        port: port on which every node listens.
        deadline_s: seconds until all others must be reached.

    Returns:
        The others. Returns when all of them have asked as well, or at the deadline.

    Raises:
        OSError: this node cannot listen on the port.
    """
    deadline = time.monotonic() + deadline_s
    others = {each: address for each, address in addresses.items() if each != name}
    asked, all_asked = set[str](), threading.Event()
    with socket.create_server((addresses[name], port), backlog=max(128, len(others))) as server:
        answering = threading.Thread(target=_answer, args=(server, others, asked, all_asked), daemon=True)
        answering.start()
        with ThreadPoolExecutor(max_workers=min(32, len(others) or 1)) as pool:
            found = pool.map(lambda each: _clock_offset(each, name, port=port, deadline=deadline), others.values())
            offsets = dict(zip(others, found, strict=True))
        if others:
            all_asked.wait(max(0.0, deadline - time.monotonic()))
    return Peers(
        {each: offset for each, offset in offsets.items() if offset is not None},
        tuple(each for each, offset in offsets.items() if offset is None),
    )


def _answer(server: socket.socket, others: Mapping[str, str], asked: set[str], all_asked: threading.Event) -> None:
    """Send the time to every node that connects, until the socket is closed."""
    while True:
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_CONNECT_TIMEOUT_S)
                for _ in range(_EXCHANGES):
                    who = _receive(connection, _NAME.size).rstrip(b"\0").decode(errors="replace")
                    connection.sendall(_TIME.pack(time.time()))
        except OSError:
            if server.fileno() < 0:
                return
            continue
        asked.add(who)
        if asked >= others.keys():
            all_asked.set()


def _clock_offset(address: str, name: str, *, port: int, deadline: float) -> float | None:
    """Clock offset from the quickest of several exchanges; None if the node was not reached."""
    while True:
        try:
            with socket.create_connection((address, port), timeout=_CONNECT_TIMEOUT_S) as connection:
                return min(_exchange(connection, name) for _ in range(_EXCHANGES))[1]
        except OSError:
            # The node may not listen yet.
            if time.monotonic() + _RETRY_S > deadline:
                return None
            time.sleep(_RETRY_S)


def _exchange(connection: socket.socket, name: str) -> tuple[float, float]:
    """Seconds that an exchange took, and the other clock minus this one, taken at half time."""
    before = time.time()
    connection.sendall(_NAME.pack(name.encode()))
    (there,) = _TIME.unpack(_receive(connection, _TIME.size))
    after = time.time()
    return after - before, there - (before + after) / 2


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("the connection was closed")
        received += part
    return received
