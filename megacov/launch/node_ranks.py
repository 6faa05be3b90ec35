"""The ranks of one node of a SLURM job: `python -m megacov.launch.node_ranks NUM_RANKS LEAVE_S HANG_S FOLDER COMMAND`.

One such task runs on each node of the trainer, in place of torchrun. SIGUSR1 kills torchrun, and torchrun turns every
exit code into 1; this task passes the signal on, waits for the checkpoint, and keeps the code. srun returns only the
highest exit code of all tasks, including tasks that srun itself killed, so the code goes to FOLDER, on the shared file
system:

FOLDER/failed  exit code of the first rank that failed; that of a rank that lost another one only if no other is known
FOLDER/asked   number of the signal that asked the ranks to leave: it has arrived and need not be sent again
FOLDER/left    the ranks were asked to leave and have saved a checkpoint
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from megacov.errors import LeaveRequested, RankError
from megacov.launch.local_ranks import NodePlace, run_local_ranks
from megacov.launch.output import keep_output

FAILED, ASKED, LEFT = "failed", "asked", "left"
_FIRST_SIGNAL = 128  # a signal ended the process if its exit code is this or higher


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of this node.

    Args:
        arguments: number of ranks on the node, seconds in which they must save and leave, seconds after which a silent
            rank counts as hanging, the folder, and the command of each rank.

    Returns:
        Exit code for srun: that of the ranks, but 0 if they left with a checkpoint. With any other code, srun would
        kill the nodes that are still saving.
    """
    num_ranks, leave_s, hang_s, folder, *command = arguments
    # The job script repeats SIGUSR1 and may send it when the ranks have left. An ignored signal would be inherited.
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
    """Note the cause. The node that fails first knows it, but nodes that fail because they lost it may report first."""
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
    keep_output()
    sys.exit(main(sys.argv[1:]))
