"""The ranks of one node of a SLURM job: `python -m megacov.launch.node_ranks NUM_RANKS LEAVE_S HANG_S FOLDER COMMAND`.

One such task runs on each node of the trainer, where torchrun would. torchrun dies of SIGUSR1 and turns every exit code
into 1; this passes the signal on, waits for the checkpoint, and keeps the code. As srun tells only the highest code of
all tasks, be it of those that it killed itself, the code goes to FOLDER, on the shared file system:

FOLDER/failed  exit code of the first rank that failed; of one that lost another rank only if no other code is known
FOLDER/asked   number of the signal that asked them to leave: it has come, and need not be sent again
FOLDER/left    they were asked to leave, and have saved a checkpoint
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from megacov.errors import LeaveRequested, RankError
from megacov.launch.local_ranks import NodePlace, run_local_ranks

FAILED, ASKED, LEFT = "failed", "asked", "left"
_FIRST_SIGNAL = 128  # exit codes from here on are ends by a signal


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of this node.

    Args:
        arguments: ranks of a node, seconds they have to save and leave, seconds after which a silent one hangs, the
            folder, and the command of each.

    Returns:
        Exit code for srun: that of the ranks, but 0 where they left with a checkpoint, because srun kills the nodes
        that are still about it when the first ends with another code.
    """
    num_ranks, leave_s, hang_s, folder, *command = arguments
    # The job asks again and again, and may do so when the ranks have left. They would inherit an ignored signal.
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    node = NodePlace(int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]))
    code = run_local_ranks(
        command,
        num_ranks=int(num_ranks),
        leave_s=float(leave_s),
        hang_s=float(hang_s),
        node=node,
        on_failure=lambda code: _note_failure(Path(folder, FAILED), code),
        on_signal=lambda number: _write_once(Path(folder, ASKED), number),
    )
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Python takes other handlers away when it ends
    if code == LeaveRequested.exit_code:
        _write_once(Path(folder, LEFT), code)
        return 0
    if code:
        _note_failure(Path(folder, FAILED), code)
    return code


def _note_failure(path: Path, code: int) -> None:
    """The first node to fail knows why; the others fail of its absence, and may be quicker to say so."""
    if code == LeaveRequested.exit_code:
        return
    is_cause = code != RankError.exit_code and code < _FIRST_SIGNAL
    if is_cause and path.exists() and path.read_text(encoding="ascii").strip() == str(RankError.exit_code):
        path.unlink(missing_ok=True)
    _write_once(path, code)


def _write_once(path: Path, number: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return
    except OSError as error:
        print(f"megacov: {path} cannot be written: {error.strerror}.", file=sys.stderr)
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{number}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
