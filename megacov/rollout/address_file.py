"""A list of rollout servers in a text file, which may change while a run goes on."""

from __future__ import annotations

from pathlib import Path

from megacov.config.addresses import check_addresses
from megacov.errors import RolloutError


def read_addresses(path: Path) -> tuple[str, ...]:
    """Read the list.

    Args:
        path: one URL a line; what follows a # is left out, and so are empty lines.

    Returns:
        At least one URL.

    Raises:
        RolloutError: the file cannot be read, names no server, or names one that is not let in.
    """
    named = f"rollout.addresses_file {path}"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RolloutError(f"{named} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.") from error
    try:
        addresses = check_addresses(url for line in lines if (url := line.partition("#")[0].strip()))
    except ValueError as error:
        raise RolloutError(f"{named}: {error}") from error
    if not addresses:
        raise RolloutError(f"{named} names no server: write one URL a line, as in http://10.0.0.5:30000.")
    return addresses
