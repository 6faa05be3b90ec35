"""The checks that run what settings name and open what they point to, in a process of their own with a deadline.

A plug-in may hang, end its process, start others, or print; none of that reaches the command. `python -m
megacov.cli.deep_check` is the process. It reports each thing before it looks at it, so that its end has a cause.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from megacov import errors
from megacov.cli.checks import Remark, Severity
from megacov.cli.deep_check import WARNING, prompts_can_be_read
from megacov.config import RunConfig
from megacov.config.loss_section import ImportedLoss
from megacov.errors import ConfigError
from megacov.rewards.registry import loads_more
from megacov.rewards.settings import verifiers_of

DEADLINE_S = 300.0
"""Seconds for one import, or for the data."""

_START_S = 60.0
_LOSS, _VERIFIER, _FILES = "loss", "verifier", "files"


def look_at_loss(config: RunConfig) -> list[Remark]:
    """Import the loss, if it is not one of megacov's own, and call it on a few tokens, for `train`."""
    return _look(config, [_LOSS], True, DEADLINE_S) if isinstance(config.algorithm.loss, ImportedLoss) else []


def look_deeper(config: RunConfig, *, same_python: bool = True, deadline_s: float = DEADLINE_S) -> list[Remark]:
    """Import what settings name and look at its signature; open tokenizer, prompts and keys that are on this machine.

    Args:
        config: configuration that has passed the static checks.
        same_python: whether the run uses this interpreter; if it does not, a module that is missing here may be there.
        deadline_s: seconds for each import, and for the files.

    Returns:
        What is impossible, and what could not be looked at.
    """
    # os.path: what cannot be read is none, and the static checks have named it.
    has_files = os.path.isfile(config.model.path / "config.json") or prompts_can_be_read(config)
    has_files = has_files or config.rollout.keys_file is not None
    parts = [*_plugins(config), *([_FILES] if has_files else [])]
    return _look(config, parts, same_python, deadline_s) if parts else []


def _plugins(config: RunConfig) -> list[str]:
    """The parts that settings name as package.module:function, and verifiers that load something."""
    loads = any(":" in each.name or loads_more(each.name) for each in verifiers_of(config).settings)
    is_named = {_VERIFIER: loads, _LOSS: isinstance(config.algorithm.loss, ImportedLoss)}
    return [part for part in is_named if is_named[part]]


def _look(config: RunConfig, parts: list[str], same_python: bool, deadline_s: float) -> list[Remark]:
    command = [sys.executable, "-m", "megacov.cli.deep_check", str(os.getpid()), *parts]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as complaints:
        given.write(config.model_dump_json().encode())
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
        )
        assert process.stdout is not None
        try:
            return _collect(process, process.stdout, complaints, same_python=same_python, deadline_s=deadline_s)
        finally:
            # Also what a plug-in has started. The group lasts until its first process is reaped.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()


def _collect(
    process: subprocess.Popen[bytes], reports: IO[bytes], complaints: IO[bytes], *, same_python: bool, deadline_s: float
) -> list[Remark]:
    found: list[Remark] = []
    looking_at, part, is_complete = "", "", False
    for report in _read_reports(reports, deadline_s):
        if report is None:
            # A login node may need longer for a million prompts without anything being wrong.
            is_late: Severity = "not looked at" if part == _FILES else "impossible"
            return [*found, Remark(is_late, f"{looking_at} has not been read within {deadline_s:g} s.")]
        looking_at, part, is_complete = report.get("looks_at", looking_at), report.get("part", part), "ends" in report
        if "sentence" in report:
            is_elsewhere = report["is_missing"] and not same_python
            severity: Severity = "not looked at" if report["kind"] is None or is_elsewhere else "impossible"
            severity = "warning" if report["kind"] == WARNING else severity
            kind = ConfigError if report["kind"] in (None, WARNING) else getattr(errors, report["kind"])
            found.append(Remark(severity, report["sentence"], kind))
    if not is_complete:
        complaints.seek(0)
        last = (complaints.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1][:200]
        sentence = f"{looking_at}: the process that looked at it has ended with {process.wait()} ({last})"
        found.append(Remark("impossible", f"{sentence}: correct what is run when it is imported."))
    return found


def _read_reports(reports: IO[bytes], deadline_s: float) -> Iterator[dict[str, Any] | None]:
    """Reports, one a line, until the end; None if one is longer in coming than the deadline."""
    rest, has_begun = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(reports, selectors.EVENT_READ)
        while True:
            # The interpreter itself may start slowly.
            if not selector.select(max(deadline_s, 0.0 if has_begun else _START_S)):
                yield None
                return
            part = os.read(reports.fileno(), 65536)
            if not part:
                return
            has_begun = True
            *lines, rest = (rest + part).split(b"\n")
            yield from map(json.loads, lines)
