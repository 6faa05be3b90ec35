"""SGLang servers that the trainer starts on its own machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from megacov.errors import RolloutError
from megacov.launch.supervise import COMMAND_FILE
from megacov.rollout.fleet.keys import ServerKeys
from megacov.rollout.fleet.server_process import ServerProcess, environment_without_rank

Option = str | int | float | bool | Sequence[str | int | float]

_KEYS_FILE = "keys.yaml"  # SGLang accepts no other suffix


class SglangServer(ServerProcess):
    """One SGLang server with all its processes.

    A supervisor process between the two makes sure that no server process survives, whichever of them is killed. SGLang
    reads its keys from a file that only this user may read, in a folder that is removed with the server; the file is
    removed as soon as the server generates. Keys are in no command line and no environment. SGLang writes them to its
    log, so only this user may read that too.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        number: int,
        keys: ServerKeys,
        log_path: Path,
        command: Sequence[str] = ("python", "-m", "sglang.launch_server"),
        arguments: Mapping[str, Option] | None = None,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        dtype: str = "float32",
        random_seed: int = 0,
        start_timeout_s: float = 600.0,
    ) -> None:
        """Start nothing yet.

        Args:
            model_path: Hugging Face model folder.
            number: index of the server within the job, from 0.
            keys: keys of the job's servers.
            log_path: log file for all output of the server; its folder must exist.
            command: command that starts SGLang, to which options are appended.
            arguments: further SGLang options without their dashes; true is a flag, false leaves the option out.
            environment: variables that differ from those of this process.
            host: address to listen on.
            dtype: type of weights and activations.
            random_seed: seed of the sampled tokens, as far as SGLang follows it.
            start_timeout_s: deadline from entering the context until the server must generate. [s]
        """
        super().__init__(f"SGLang server {number}", log_path, start_timeout_s)
        self._options: dict[str, Option] = {
            **(arguments or {}),
            "model-path": str(model_path),
            "dtype": dtype,
            "random-seed": random_seed,
            "host": host,
        }
        self._command = [*command]
        self._environment = dict(environment or {})
        self._keys = keys
        self._host = host
        self._reserved: socket.socket | None = None
        self._folder: Path | None = None

    def settle(self) -> None:
        """Remove the keys from the disk, now that the server has read them."""
        if self._folder is not None:
            Path(self._folder, _KEYS_FILE).unlink(missing_ok=True)

    def _launch(self) -> subprocess.Popen[bytes]:
        self._reserved = _reserve_port(self._host)
        port = self._reserved.getsockname()[1]
        shown_host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"http://{shown_host}:{port}"
        self._folder = Path(tempfile.mkdtemp(prefix="megacov-server-"))  # readable by this user only
        keys = self._folder / _KEYS_FILE
        _write_privately(keys, json.dumps({"api-key": self._keys.api, "admin-api-key": self._keys.admin}))
        command = [*self._command, "--config", str(keys), *_as_arguments(self._options | {"port": port})]
        # SGLang keeps the sockets between its processes in TMPDIR.
        environment = {**self._environment, "TMPDIR": str(self._folder)}
        _write_privately(
            self._folder / COMMAND_FILE, json.dumps({"command": command, "environment": environment}, indent=2)
        )
        supervisor = [sys.executable, "-m", "megacov.launch.supervise", str(os.getpid()), str(self._folder)]
        with os.fdopen(_open_privately(self._log_path, os.O_APPEND), "ab") as log:
            return subprocess.Popen(
                supervisor,
                env=environment_without_rank(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must not end the server before the trainer has finished
            )

    def look_for_address(self) -> bool:
        """Return True: the address is known from the start."""
        return True

    def _clean_up(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _reserve_port(host: str) -> socket.socket:
    """Bind a free port without listening: other programs cannot get it, but SGLang can, as it reuses addresses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((host, 0))
    except OSError as error:
        reserved.close()
        raise RolloutError(
            f"rollout.host is {host}, where no server can listen on this machine ({error.strerror}): set 127.0.0.1, or "
            "the machine's address in its private network."
        ) from error
    return reserved


def _as_arguments(options: Mapping[str, Option]) -> list[str]:
    arguments: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        arguments.append(f"--{name}")
        if isinstance(value, list | tuple):
            arguments += map(str, value)
        elif value is not True:
            arguments.append(str(value))
    return arguments


def _open_privately(path: Path, flag: int) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    os.fchmod(descriptor, 0o600)  # the file may have existed with another mode
    return descriptor


def _write_privately(path: Path, text: str) -> None:
    with os.fdopen(_open_privately(path, os.O_TRUNC), "w", encoding="utf-8") as file:
        file.write(text)
