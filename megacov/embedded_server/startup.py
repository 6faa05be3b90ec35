"""Checks before the model is loaded: the folder and the port. Errors are quick, because torch is not imported."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from megacov.config.addresses import is_loopback
from megacov.errors import ConfigError, DataError, RolloutError
from megacov.files import write_atomically

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_BACKLOG = 2048


def check_model_folder(folder: Path) -> None:
    """Check what can be checked without heavy imports.

    Args:
        folder: Hugging Face model folder.

    Raises:
        DataError: the folder is no model folder, or has no tokenizer.
    """
    if not folder.is_dir():
        raise DataError(f"There is no model folder {folder}; give the path of a Hugging Face model folder.")
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json, so it is no Hugging Face model folder; correct the path.")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise DataError(f"{folder} has no tokenizer ({_TOKENIZER_FILES[0]}); save the tokenizer into the model folder.")


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port. Clients may connect from now on, and are answered once the model is loaded.

    Args:
        host: address to bind to.
        port: port to bind to; 0 takes a free one.

    Returns:
        The listening socket.

    Raises:
        RolloutError: the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RolloutError(f"Port {port} on {host} is in use; choose another one, or 0 for a free one.") from error
        raise RolloutError(f"Cannot listen on {host}, port {port} ({error.strerror}); choose another one.") from error
    return listener


def refuse_open_address(host: str, *, has_key: bool) -> None:
    """Refuse an address that other machines reach if requests need no key: anybody could then replace the weights.

    Args:
        host: IP address that the server listens on.
        has_key: whether every request must carry a key.

    Raises:
        ConfigError: the address is not loopback, and no key is needed.
    """
    if not has_key and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, and no request would need a key: give --keys-file "
            "with a file that holds api-key and admin-api-key, or listen on 127.0.0.1."
        )


def write_port_file(path: Path, port: int) -> None:
    """Write the port atomically, in decimal with a newline. An existing file is replaced."""
    write_atomically(path, f"{port}\n")
