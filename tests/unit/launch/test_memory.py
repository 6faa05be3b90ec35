"""A process that lives long keeps the memory that it frees, and seldom looks for garbage."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Four blocks of 8 MB, filled and freed again and again, as the tensors of a training step are.
_FAULTS_OF_A_ROUND = """
import gc, resource, sys
import numpy as np
from megacov.launch.memory import keep_freed_memory, spare_collector

if sys.argv[1] == "keeps":
    assert keep_freed_memory()
    spare_collector()
rounds = 10
for number in range(rounds + 2):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.full(1 << 20, number, dtype=np.float64) for _ in range(4)]
    del blocks
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults / rounds, gc.get_threshold()[0], gc.get_freeze_count())
"""


def _measure(how: str) -> tuple[float, int, int]:
    found = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_A_ROUND, how], capture_output=True, text=True, check=True, timeout=60
    )
    faults, threshold, frozen = found.stdout.split()
    return float(faults), int(threshold), int(frozen)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt is what is tested")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    faults, threshold, frozen = _measure("keeps")
    assert faults < 100
    assert threshold == 100_000
    assert frozen > 1000
    assert _measure("gives back")[0] > 1000, "glibc keeps freed memory by itself now"
