"""Questions to SLURM, each with a deadline."""

from __future__ import annotations

import subprocess

from megacov.errors import SubmitError

ASK_S = 20.0


def ask_slurm(*words: str, deadline_s: float = ASK_S) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands.

    Args:
        *words: program and arguments of a command that changes nothing.
        deadline_s: seconds within which SLURM must answer.

    Returns:
        The ended command. If SLURM refuses, the exit code is not 0, and `complaint` gives the reason.

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
    """Say why one of SLURM's commands failed.

    Args:
        answer: ended command with an exit code other than 0.

    Returns:
        A sentence with the last line of its output.
    """
    last = (answer.stderr.strip() or answer.stdout.strip() or "nothing").rpartition("\n")[2]
    return f"{answer.args[0]} says {last!r}."
