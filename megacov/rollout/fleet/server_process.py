"""Rollout servers as child processes: what all have in common, and the embedded server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from megacov.errors import RolloutError
from megacov.launch.process import PARENT_PID_VARIABLE, stop_processes
from megacov.rollout.fleet.keys import ServerKeys, write_keys

_POLL_S = 0.05
_TAIL_BYTES = 16 * 1024  # logs may have gigabytes
_STOP_GRACE_S = 5.0  # a supervisor needs more than a second
# These variables make a process a rank, which a server must not be.
_RANK_VARIABLES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MEGACOV_STORE", PARENT_PID_VARIABLE}
)


class ServerProcess(ABC):
    """A rollout server, as a context: entering waits until it generates, leaving stops it.

    The server also ends with this process. Start it on a thread that lives as long as the process, normally the main
    thread; `die_with_parent` explains why.
    """

    def __init__(self, name: str, log_path: Path, start_timeout_s: float) -> None:
        """Start nothing yet.

        Args:
            name: name in messages, such as "embedded server".
            log_path: log file for all output of the server; its folder must exist.
            start_timeout_s: deadline from entering the context until the server must generate. [s]
        """
        self.name = name
        self.address = ""
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process and return at once; the caller must enter the context or call `stop`.

        After `stop` the server may be started again, perhaps at another address. Its log is appended to.

        Raises:
            RolloutError: the process cannot be started.
        """
        if self.pid is None:
            with suppress(OSError):  # somebody may have deleted the logs, or renamed the run, since the last start
                self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._process = self._launch()

    def __enter__(self) -> Self:
        """Start the server if `start` has not, and wait until it generates.

        Returns:
            Itself, with `address` set.

        Raises:
            RolloutError: the server ended or took too long; it is stopped then.
        """
        self.start()
        self.wait_ready(time.monotonic() + self._start_timeout_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def wait_ready(self, deadline: float) -> None:
        """Wait until a started server generates.

        Args:
            deadline: time on the monotonic clock. [s]

        Raises:
            RolloutError: the server ended or took too long; it is stopped then.
        """
        is_ready = False
        try:
            while not self.look_for_address():
                self._check_starting(deadline)
                time.sleep(_POLL_S)
            self._wait_healthy(deadline)
            self.settle()
            is_ready = True
        finally:
            if not is_ready:
                self.stop()

    def check_alive(self) -> None:
        """Check that the server has not ended.

        Raises:
            RolloutError: the server has ended; the message quotes the last line of its log.
        """
        if self._process is not None and self._process.poll() is not None:
            raise RolloutError(
                f"The {self.name} ended with exit code {self._process.returncode}; its log {self._log_path} ends "
                f"with: {_last_line(self._log_path)}"
            )

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if self._process is not None:
            stop_processes([self._process], _STOP_GRACE_S)
            self._clean_up()

    @abstractmethod
    def look_for_address(self) -> bool:
        """Set `address` as soon as the server has a port; returns whether it has one."""

    @abstractmethod
    def settle(self) -> None:
        """Remove what only the start needed; called once the server generates."""

    @abstractmethod
    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the process."""

    @abstractmethod
    def _clean_up(self) -> None:
        """Remove everything the server needed except its log."""

    def _wait_healthy(self, deadline: float) -> None:
        with httpx.Client(trust_env=False) as http:
            while True:
                self._check_starting(deadline)
                try:
                    if http.get(f"{self.address}/health", timeout=max(_POLL_S, deadline - time.monotonic())).is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(_POLL_S)

    def _check_starting(self, deadline: float) -> None:
        self.check_alive()
        if time.monotonic() > deadline:
            raise RolloutError(
                f"The {self.name} did not generate within {self._start_timeout_s:g} s; raise "
                f"rollout.start_timeout_s, or look at its log {self._log_path}."
            )


class EmbeddedServer(ServerProcess):
    """`megacov serve`."""

    def __init__(
        self,
        model_path: Path,
        *,
        log_path: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        dtype: str = "float32",
        num_threads: int = 1,
        random_seed: int = 0,
        max_running_requests: int = 512,
        deterministic: bool = False,
        keys: ServerKeys | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        """Start nothing yet.

        Args:
            model_path: Hugging Face model folder.
            log_path: log file for all output of the server; its folder must exist. The port file `.port` is beside it.
            host: address to listen on.
            port: port to listen on; 0 takes a free one.
            dtype: type of the weights in memory: auto, float32 or bfloat16.
            num_threads: threads of one torch operation.
            random_seed: seed of the sampled tokens.
            max_running_requests: largest number of completions generated at a time.
            deterministic: run one request at a time, so that equal seeds give equal bits.
            keys: keys that requests must carry; required off loopback. They are in no command line: the server reads a
                file that only this user may read, which is removed once it has.
            start_timeout_s: deadline from entering the context until the server must generate. [s]
        """
        super().__init__("embedded server", log_path, start_timeout_s)
        self._options = {
            "host": host,
            "port": port,
            "dtype": dtype,
            "num-threads": num_threads,
            "random-seed": random_seed,
            "max-running-requests": max_running_requests,
            "parent-pid": os.getpid(),
        }
        self._switches = ["--deterministic"] if deterministic else []
        self._model_path = model_path
        self._port_file = log_path.with_suffix(".port")
        self._keys = keys
        self._keys_file = log_path.with_suffix(".keys.yaml")
        self._num_threads = num_threads

    def _launch(self) -> subprocess.Popen[bytes]:
        self._port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "megacov", "serve", str(self._model_path), "--port-file", str(self._port_file)]
        for name, value in self._options.items():
            command += [f"--{name}", str(value)]
        command += self._switches
        if self._keys is not None:
            write_keys(self._keys, self._keys_file)
            command += ["--keys-file", str(self._keys_file)]
        environment = environment_without_rank() | {"OMP_NUM_THREADS": str(self._num_threads)}
        with self._log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal must not end the server before the trainer has finished.
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look_for_address(self) -> bool:
        """Read the port file; returns whether the server has written it."""
        if not self._port_file.exists():
            return False
        host = str(self._options["host"])
        shown_host = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown_host}:{int(self._port_file.read_text(encoding='ascii'))}"
        self._keys_file.unlink(missing_ok=True)
        return True

    def settle(self) -> None:
        """Keep everything: other programs may look for the server in the port file."""

    def _clean_up(self) -> None:
        self._port_file.unlink(missing_ok=True)
        self._keys_file.unlink(missing_ok=True)


def environment_without_rank() -> dict[str, str]:
    """This process's environment without the variables that would make a child a rank."""
    return {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}


def _last_line(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")
