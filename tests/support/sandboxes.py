"""Sandboxes for tests, which are skipped where Linux does not allow them."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from megacov.errors import ConfigError
from megacov.rewards.sandbox.confinement import Limits
from megacov.rewards.sandbox.sandbox import Sandbox, SandboxSettings, check_sandbox

ROOT = Path(__file__).parents[2]
MIB = 2**20


def settings(
    *, memory_mib: int = 512, processes: int = 8, wall_s: float = 30.0, cpu_s: float = 20.0, folder_mib: int = 4
) -> SandboxSettings:
    """Settings of a sandbox; programs have 30 s, which only a busy machine needs."""
    limits = Limits(
        cpu_s=cpu_s,
        memory_bytes=512 * MIB,
        file_bytes=folder_mib * MIB,
        output_bytes=MIB,
        processes=processes,
        open_files=32,
    )
    return SandboxSettings(limits=limits, memory_bytes=memory_mib * MIB, wall_s=wall_s)


def run_program(source: str, chosen: SandboxSettings | None = None, *, times: int = 1) -> list[tuple[str, str]]:
    """Status and output of a program that runs in one sandbox `times` times."""
    with Sandbox.start(textwrap.dedent(source), chosen or settings(), total_s=60.0) as sandbox:
        return [sandbox.run({"kind": "main", "input": "5\n"}) for _ in range(times)]


@functools.cache
def why_not() -> str | None:
    """Why there can be no sandbox here, or None."""
    try:
        check_sandbox(settings())
    except ConfigError as error:
        return str(error)
    return None


def needs_sandbox() -> None:
    """Skip a test where there can be no sandbox."""
    if reason := why_not():
        pytest.skip(reason)


def run_behind(wrapper: tuple[str, ...], program: str, *, python: str = sys.executable) -> str:
    """What a program prints in an interpreter behind a command such as unshare."""
    command = [*wrapper, python, "-B", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return result.stdout + result.stderr
