"""Shared by all tests: one thread, no network look-ups, equal seeds, and skips that give their reason."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

# Before anything imports torch or tokenizers; ranks that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest

from tests.support.browser import why_no_browser
from tests.support.dearest_modules import DearestModules

# Modules that take minutes, most of them waiting for daemons: one for each worker to begin with, and then the others,
# so that neither worker is left alone with one at the end.
FIRST = ("end_to_end/test_survival.py", "rollout/test_sglang_real.py", "distributed/test_layout_invariance.py")
SGLANG = Path(__file__).parents[1] / ".venv-sglang"
TRITON = Path(__file__).parents[1] / ".venv-triton"

# Other work shares the cores, so time says nothing; CI draws the same examples every time.
hypothesis.settings.register_profile("megacov", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("megacov")


def pytest_configure(config: pytest.Config) -> None:
    """End with a table of what the tests cost."""
    config.pluginmanager.register(DearestModules(), "dearest_modules")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules, and skip what this machine cannot run."""
    items.sort(key=_place)
    reasons = {
        "browser": why_no_browser,
        "gpu": _no_gpu,
        "sglang": _no_sglang,
        "slurm": _no_slurm,
        "triton": _no_triton,
    }
    for marker, reason in reasons.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (why := reason()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=why))


def _place(item: pytest.Item) -> int:
    module = item.nodeid.partition("::")[0]
    return next((place for place, name in enumerate(FIRST) if module.endswith(name)), len(FIRST))


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    random.seed(0)
    # Only where the test has torch already: importing it takes longer than most tests.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def _no_sglang() -> str:
    """Servers run in an environment of their own, where SGLang is looked for and not imported."""
    if not os.access(SGLANG / "bin" / "python", os.X_OK):
        return "there is no .venv-sglang; `make sglang` makes it"
    if not any(SGLANG.glob("lib/python3*/site-packages/sglang/launch_server.py")):
        return "SGLang is not installed in .venv-sglang; `make sglang` says why"
    return ""


def _no_triton() -> str:
    """Triton has an environment of its own, so that torch and all other tests do not see it."""
    if not os.access(TRITON / "bin" / "python", os.X_OK):
        return "there is no .venv-triton; `make triton` makes it"
    if not any(TRITON.glob("lib/python3*/site-packages/triton/language/core.py")):
        return "Triton is not installed in .venv-triton; `make triton` says why"
    return ""


def _no_slurm() -> str:
    """Namespaces of network and processes, and device files, are root's to make."""
    if os.geteuid() != 0:
        return "a SLURM cluster in this machine needs root"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} cannot be found; `make try-slurm` installs them where it can"
    allowed = subprocess.run(["unshare", "-n", "-u", "-m", "-p", "-f", "true"], capture_output=True, timeout=60)
    return "" if allowed.returncode == 0 else "this machine lets nobody make namespaces"
