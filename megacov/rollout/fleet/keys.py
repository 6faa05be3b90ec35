"""Keys of rollout servers: made for those that the trainer starts, read from a file for others."""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError

_KEY = re.compile(r"[!-~]+")  # what fits into a header


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a server wants to be shown: one key with requests for tokens, the other with weights and control."""

    api: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)


def make_keys() -> ServerKeys:
    """Fresh random keys. Hexadecimal: SGLang would take a key with a leading dash for an option."""
    return ServerKeys(secrets.token_hex(32), secrets.token_hex(32))


def read_keys(path: Path) -> ServerKeys:
    """Read the keys of servers that somebody else has started.

    Args:
        path: YAML with api-key, admin-api-key or both, such as SGLang's --config takes; other keys in it are let be.

    Returns:
        The keys.

    Raises:
        ConfigError: others may read the file or own it, or it holds no such keys.
    """
    named = f"rollout.keys_file {path}"
    try:
        with path.open(encoding="utf-8") as file:
            status, text = os.fstat(file.fileno()), file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.") from error
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{named} belongs to user {status.st_uid} and not to {os.geteuid()}: use a file of your own.")
    if mode & 0o077:
        raise ConfigError(f"{named} has mode {mode:04o}, so that others can use the keys: run chmod 600 {path}.")
    values = parse_yaml(text, source=named)
    if not isinstance(values, dict):
        raise ConfigError(f"{named} is no mapping: write lines such as api-key: KEY and admin-api-key: KEY.")
    found = {name: values.get(name) for name in ("api-key", "admin-api-key")}
    if not any(found.values()):
        raise ConfigError(f"{named} has neither api-key nor admin-api-key: write one of them, or both.")
    for name, key in found.items():
        if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
            raise ConfigError(f"{named}: {name} is no text of printable ASCII characters; put quotes around it.")
    return ServerKeys(found["api-key"], found["admin-api-key"])
