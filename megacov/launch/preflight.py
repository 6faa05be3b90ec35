"""Checks of a job's nodes before anything starts on them; slurm/job.sh runs both parts.

`python -m megacov.launch.preflight node FOLDER PORT GPUS SECONDS NODE=ADDRESS...` runs on each node, waits up to
SECONDS for the other nodes, and prints the node's report.

`python -m megacov.launch.preflight judge FOLDER NODE...` reads the output of all nodes from FOLDER/reports and prints
its verdict. If there are bad nodes, it writes their names to FOLDER/bad_nodes and ends with the code of PreflightError.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from megacov.errors import PreflightError
from megacov.files import write_atomically
from megacov.launch.node_report import NodeReport, examine_node, judge, read_reports
from megacov.launch.output import keep_output
from megacov.launch.peers import meet_peers

REPORTS, BAD_NODES = "reports", "bad_nodes"
_FOLDER_S = 60.0
# Seconds after the meeting at which the task ends even if something hangs: a missing report then names the node.
_CLOSING_S = 70.0


def report_node(
    node: str, folder: Path, *, port: int, gpus: int, meeting_s: float, addresses: Mapping[str, str]
) -> NodeReport:
    """Check this node, while all other nodes do the same.

    Args:
        node: name of this node.
        folder: folder on the shared file system.
        port: port on which every node listens during the check.
        gpus: number of GPUs of each node; 0 for a run on the CPU.
        meeting_s: seconds within which the other nodes must have begun.
        addresses: addresses of all nodes by name.

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
    """Judge the nodes by the reports in a folder, and print the verdict.

    Args:
        folder: folder whose file `reports` holds the output of the nodes.
        nodes: names of the job's nodes; the job script runs on the first.

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
    write_atomically(folder / BAD_NODES, "".join(f"{node}\n" for node in verdict.bad))
    return PreflightError.exit_code


def main(arguments: Sequence[str]) -> int:
    """Run one of the two parts, and return the exit code."""
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
    keep_output()
    sys.exit(main(sys.argv[1:]))
