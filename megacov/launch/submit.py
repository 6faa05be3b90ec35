"""Submit job scripts to SLURM."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from megacov.errors import SubmitError

_SUBMIT_S = 60.0


def submit_chain(script: Path, *, links: int, seeds: Sequence[int]) -> list[str]:
    """Submit a script as a chain of jobs, each of which starts when the one before has ended, with whatever exit code.

    Args:
        script: job script. It gets its number in the chain as an argument.
        links: number of jobs in the chain.
        seeds: seeds of the runs, each a task of a job array; empty for a plain job.

    Returns:
        Ids of the jobs.

    Raises:
        SubmitError: SLURM does not accept a job.
    """
    ids: list[str] = []
    for link in range(links):
        after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
        array = [f"--array={','.join(map(str, seeds))}"] if seeds else []
        ids.append(_submit(["sbatch", "--parsable", *after, *array, str(script), str(link)], before=ids))
    return ids


def _submit(command: Sequence[str], *, before: Sequence[str]) -> str:
    already = f" (jobs {', '.join(before)} are submitted)" if before else ""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SUBMIT_S, check=False)
    except FileNotFoundError:
        raise SubmitError(
            "there is no sbatch on this machine: run `megacov launch` on a login node, or --dry-run to see the script."
        ) from None
    except subprocess.TimeoutExpired:
        raise SubmitError(
            f"sbatch has not answered within {_SUBMIT_S:g} s{already}: look with squeue whether it has the job before "
            "submitting it again."
        ) from None
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["it gives no reason"])[-1]
        raise SubmitError(f"sbatch has refused the job{already}: {last}.")
    return answer.stdout.strip().partition(";")[0]
