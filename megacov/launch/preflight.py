"""Checks of a job's nodes before anything starts there; slurm/job.sh calls both parts.

`python -m megacov.launch.preflight node FOLDER PORT GPUS SECONDS NODE=ADDRESS...` on each node prints its report; it
waits so long for the others.
`python -m megacov.launch.preflight judge FOLDER NODE...` reads what all have printed from FOLDER/reports, says what it
finds, writes the names of bad nodes to FOLDER/bad_nodes, and ends with the code of PreflightError where there are any.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from megacov.errors import PreflightError
from megacov.launch.node_report import NodeReport, examine_node, judge, read_reports
from megacov.launch.peers import meet_peers

REPORTS, BAD_NODES = "reports", "bad_nodes"
_FOLDER_S = 60.0
# Whatever hangs, the task ends so long after the meeting: a report that is missing names the node.
_CLOSING_S = 70.0


def report_node(
    node: str, folder: Path, *, port: int, gpus: int, meeting_s: float, addresses: Mapping[str, str]
) -> NodeReport:
    """Check this node, while all others do the same.

    Args:
        node: its name.
        folder: on the shared file system.
        port: that every node listens on meanwhile.
        gpus: of each node; 0 for a run on the CPU.
        meeting_s: seconds that the others have to begin.
        addresses: of all nodes by their names.

    Returns:
        The report.
    """
    report = examine_node(node, folder, gpus=gpus, deadline_s=_FOLDER_S)
    try:
        peers = meet_peers(node, addresses, port=port, deadline_s=meeting_s)
    except OSError as error:
        return replace(report, problems=(*report.problems, f"cannot listen on port {port}: {error.strerror}"))
    return replace(report, offsets=peers.offsets, unreachable=peers.unreachable)


def judge_folder(folder: Path, nodes: Sequence[str]) -> int:
    """Judge the nodes by the reports in a folder, and say so.

    Args:
        folder: with what the nodes have printed, in the file `reports`.
        nodes: of the job; the script runs on the first.

    Returns:
        Exit code.
    """
    text = (folder / REPORTS).read_text(encoding="utf-8", errors="replace")
    verdict = judge(nodes, read_reports(text.splitlines()))
    for node, reasons in verdict.bad.items():
        print(f"megacov: preflight: {node} is bad: {'; '.join(reasons)}.")
    if not verdict.bad:
        good = f"{len(nodes)} nodes are" if len(nodes) > 1 else f"{nodes[0]} is"
        print(f"megacov: preflight: {good} good; {'; '.join(verdict.notes)}.")
        return 0
    (folder / BAD_NODES).write_text("".join(f"{node}\n" for node in verdict.bad), encoding="utf-8")
    return PreflightError.exit_code


def main(arguments: Sequence[str]) -> int:
    """Run one of the two parts.

    Args:
        arguments: of the command line.

    Returns:
        Exit code.
    """
    part, folder, *words = arguments
    if part == "judge":
        return judge_folder(Path(folder), words)
    port, gpus, meeting_s, *places = words
    ending = threading.Timer(float(meeting_s) + _CLOSING_S, os._exit, (1,))
    ending.daemon = True
    ending.start()
    report = report_node(
        os.environ["SLURMD_NODENAME"],
        Path(folder),
        port=int(port),
        gpus=int(gpus),
        meeting_s=float(meeting_s),
        addresses=dict(place.split("=", 1) for place in places),
    )
    print("\n".join(report.to_lines()), flush=True)
    # Not sys.exit: a thread may still wait for a file system.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
