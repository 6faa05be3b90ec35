"""A list of rollout servers in a text file, which may change during a run."""

from __future__ import annotations

from pathlib import Path

from megacov.config.addresses import check_addresses
from megacov.errors import RolloutError

_MAX_BYTES = 2**20


class AddressFile:
    """Holds one URL a line; comments after a # and empty lines are ignored."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self._path = path
        self._complaint = ""

    def read(self) -> tuple[str, ...]:
        """Read the list.

        Returns:
            At least one URL.

        Raises:
            RolloutError: the file cannot be read, names no server, or names one at a forbidden address.
        """
        named = f"rollout.addresses_file {self._path}"
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            lines = content.decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise RolloutError(f"{named} cannot be read: {why}.") from error
        if len(content) > _MAX_BYTES:
            raise RolloutError(f"{named} has more than {_MAX_BYTES} bytes: write one URL a line.")
        try:
            addresses = check_addresses(url for line in lines if (url := line.partition("#")[0].strip()))
        except ValueError as error:
            raise RolloutError(f"{named}: {error}") from error
        if not addresses:
            raise RolloutError(f"{named} names no server: write one URL a line, as in http://10.0.0.5:30000.")
        return addresses

    def read_again(self) -> tuple[str, ...] | None:
        """Read the list again.

        Returns:
            URLs, or None if the file is unusable; the reason is printed once.
        """
        try:
            addresses = self.read()
        except RolloutError as error:
            if str(error) != self._complaint:
                print(f"megacov: the rollout servers stay as they are: {error}", flush=True)
            self._complaint = str(error)
            return None
        self._complaint = ""
        return addresses
