"""Runs a module where Triton is installed, and all of a module's checks in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def run_with_triton(module: str, folder: Path, **environment: str) -> dict:
    """What a module prints as JSON in the environment that has Triton."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder)} | environment
    command = [ROOT / ".venv-triton" / "bin" / "python", "-W", "ignore", "-m", module]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def print_failures(checks: dict[str, Callable[[str], None]]) -> None:
    """Run the checks on the CPU, and print for each the assertion that failed, or an empty text."""
    torch.set_num_threads(1)
    failures = {}
    for name, check in checks.items():
        try:
            check("cpu")
            failures[name] = ""
        except AssertionError:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))
