"""The peak of a rank's memory in a step: on a GPU what torch allocated there, on a CPU what of the process is resident.

Linux keeps the peak of the resident size (VmHWM in /proc/self/status), and forgets it when a process writes 5 to its
own /proc/self/clear_refs. Where that is not allowed, the peak is that of the process so far; on other systems it is
what is resident now.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak() -> None:
    """Let `peak_bytes` count from here on, where that is possible."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The peak since `restart_peak`. [bytes]

    Returns:
        Of this rank's GPU, or of this process on a CPU.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
