"""Keys of rollout servers: random ones for servers that the trainer starts, read from a file for others."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from megacov.config.yaml_text import MAX_YAML_BYTES, parse_yaml
from megacov.errors import ConfigError

_KEY = re.compile(r"[!-~]+")  # printable ASCII, so that it fits into a header


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """Keys that a server requires: `api` for sampling, `admin` for weight updates and control."""

    api: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)


def write_keys(keys: ServerKeys, path: Path) -> None:
    """Write a file that `read_keys` and SGLang's --config take, and that only this user may read."""
    content = {"api-key": keys.api, "admin-api-key": keys.admin}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)  # the file may have existed with another mode
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({name: key for name, key in content.items() if key is not None}, file)


def make_keys() -> ServerKeys:
    """Make random keys. They are hexadecimal, since SGLang would read a key with a leading dash as an option."""
    return ServerKeys(secrets.token_hex(32), secrets.token_hex(32))


def read_keys(path: Path, *, setting: str = "rollout.keys_file") -> ServerKeys:
    """Read keys from a file, such as those of servers that somebody else started.

    Args:
        path: YAML file with api-key, admin-api-key or both, as SGLang's --config takes it; other entries are ignored.
        setting: setting or option that names the file, for errors.

    Returns:
        The keys.

    Raises:
        ConfigError: other users can read the file or own it, or it holds no such keys.
    """
    named = f"{setting} {path}"
    try:
        with path.open("rb") as file:
            status, text = os.fstat(file.fileno()), file.read(MAX_YAML_BYTES + 1).decode("utf-8")
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
