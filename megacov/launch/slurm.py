"""Questions to SLURM, each with a deadline."""

from __future__ import annotations

import re
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
        # Names of jobs and accounts are bytes to SLURM, in whatever encoding.
        return subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=deadline_s, check=False
        )
    except FileNotFoundError:
        raise SubmitError("there is no SLURM on this machine.") from None
    except OSError as error:
        raise SubmitError(f"{words[0]} cannot be run: {error.strerror}.") from None
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


def read_count(text: str) -> int:
    """Read a number as SLURM prints it: 1024 nodes are 1K. Raises SubmitError if the text is no such number."""
    found = re.fullmatch(r"([0-9]{1,18})([KMG]?)", text)
    if found is None:
        raise SubmitError(f"SLURM gives {text[:40]!r} where a number belongs.")
    return int(found[1]) * 1024 ** " KMG".find(found[2] or " ")


def read_seconds(text: str) -> int | None:
    """Seconds in [days-]hours:minutes:seconds; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
