"""Ask SLURM something, and do not wait for ever."""

from __future__ import annotations

import subprocess

from megacov.errors import SubmitError

ASK_S = 20.0


def ask_slurm(*words: str, deadline_s: float = ASK_S) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands.

    Args:
        *words: of the command, that asks and changes nothing.
        deadline_s: that SLURM has to answer.

    Returns:
        What it printed; its exit code may be that of a refusal, which `complaint` tells.

    Raises:
        SubmitError: there is no such command, or no answer in time.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=deadline_s, check=False)
    except FileNotFoundError:
        raise SubmitError("there is no SLURM on this machine.") from None
    except subprocess.TimeoutExpired:
        raise SubmitError(f"SLURM has not answered within {deadline_s:g} s.") from None


def complaint(answer: subprocess.CompletedProcess[str]) -> str:
    """Why one of SLURM's commands did not do it.

    Args:
        answer: that has an exit code other than 0.

    Returns:
        A sentence with the last thing it said.
    """
    last = (answer.stderr.strip() or answer.stdout.strip() or "nothing").rpartition("\n")[2]
    return f"{answer.args[0]} says {last!r}."
