"""Reports of nodes on themselves before a run, and the verdict on which nodes are bad. Pure except for the checks."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megacov.json_text import JsonError, parse_json
from megacov.launch.gpus import examine_gpus

CANARY = "canary"
_MARK = "megacov-report"
_LINE = re.compile(rf"{_MARK} (\S+) ([0-9]{{1,4}}) ([0-9]{{1,4}}) (.*)")
_PART = 600  # characters of a report in one line
_WRITTEN_BYTES = 4 * 2**20
_SLOWEST_WRITE_S = 30.0
_LARGEST_SKEW_S = 1.0
# NCCL shares buffers between the GPUs of a node through /dev/shm; checkpoints and compilers use the temporary folder.
_LEAST_FREE_BYTES = {"/dev/shm": 512 * 2**20, "/tmp": 2**30}


@dataclass(frozen=True)
class NodeReport:
    """Report of one node.

    problems: one sentence for each; any of them makes the node unfit.
    driver: version of the GPU driver; empty if the node has no GPUs.
    gpus: names of the GPUs.
    write_s: seconds to write 4 MiB to the shared folder and read them back.
    offsets: clocks of the nodes that this one has reached, minus its own. [s]
    unreachable: nodes that this one has not reached.
    missing: why the run cannot read its model here; empty if it can.
    """

    node: str
    problems: tuple[str, ...] = ()
    driver: str = ""
    gpus: tuple[str, ...] = ()
    write_s: float = 0.0
    offsets: Mapping[str, float] = field(default_factory=dict)
    unreachable: tuple[str, ...] = ()
    missing: str = ""

    def to_lines(self) -> list[str]:
        """The report in lines so short that srun passes each on whole, even if other nodes' lines come between."""
        text = json.dumps(asdict(self))
        parts = [text[i : i + _PART] for i in range(0, len(text), _PART)]
        return [f"{_MARK} {self.node} {i} {len(parts)} {part}" for i, part in enumerate(parts)]


def read_reports(lines: Iterable[str]) -> dict[str, NodeReport]:
    """Find the reports in the output of several nodes.

    Args:
        lines: output that contains lines of `NodeReport.to_lines`, in any order.

    Returns:
        The complete reports by node.
    """
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    sizes: dict[str, int] = {}
    for line in lines:
        # Other programs write into the same output: a line that only looks like a part of a report is none.
        found = _LINE.match(line)
        if found is not None:
            node, number, size, part = found.groups()
            parts[node][int(number)], sizes[node] = part, int(size)
    whole = (node for node in parts if all(i in parts[node] for i in range(sizes[node])))
    reports = ((node, _from_json("".join(parts[node][i] for i in range(sizes[node])))) for node in whole)
    return {node: report for node, report in reports if report is not None}


def _from_json(text: str) -> NodeReport | None:
    """The report; None if it was garbled on its way, as if the node had sent none."""
    try:
        fields = parse_json(text)
    except JsonError:
        return None
    match fields:
        case {
            "node": str(node),
            "problems": list(problems),
            "driver": str(driver),
            "gpus": list(gpus),
            "write_s": int() | float() as write_s,
            "offsets": dict(offsets),
            "unreachable": list(unreachable),
            "missing": str(missing),
        } if all(isinstance(each, str) for each in (*problems, *gpus, *unreachable)) and all(
            isinstance(offset, int | float) for offset in offsets.values()
        ):
            lists = tuple(problems), driver, tuple(gpus), write_s, offsets, tuple(unreachable)
            return NodeReport(node, *lists, missing=missing)
    return None


@dataclass(frozen=True)
class Verdict:
    """The meaning of all nodes' reports.

    bad: reasons by node.
    notes: phrases about the good nodes, for the log.
    missing: what no node has, so that the cause is not a node; empty otherwise.
    """

    bad: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    missing: str = ""


def check_space() -> list[str]:
    """Check the free space on the node's own file systems.

    Returns:
        A sentence for each file system with too little space.
    """
    free = {path: shutil.disk_usage(path).free for path in _LEAST_FREE_BYTES if Path(path).is_dir()}
    return [
        f"{path} has {free[path] / 2**20:.0f} MiB free, and {_LEAST_FREE_BYTES[path] / 2**20:.0f} are needed"
        for path in free
        if free[path] < _LEAST_FREE_BYTES[path]
    ]


def check_shared_folder(folder: Path, node: str) -> tuple[float, list[str]]:
    """Read a file that the job's first node has written; then write one and read it back.

    Args:
        folder: folder on the file system that all nodes share; it holds a file `canary`.
        node: name of this node, for the name of the file.

    Returns:
        Seconds for writing and reading back, and a sentence for each problem.
    """
    start, content, path = time.monotonic(), os.urandom(_WRITTEN_BYTES), folder / f"{node}.tmp"
    try:
        if not (folder / CANARY).read_bytes():
            return 0.0, [f"{folder / CANARY} is empty on this node: it does not see what others write"]
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        read = path.read_bytes()
        path.unlink()
    except OSError as error:
        return 0.0, [f"{error.filename or folder}: {error.strerror}"]
    seconds = time.monotonic() - start
    if read != content:
        return seconds, [f"{folder} gives back other bytes than were written"]
    if seconds > _SLOWEST_WRITE_S:
        return seconds, [f"{folder} took {seconds:.0f} s for 4 MiB, and {_SLOWEST_WRITE_S:.0f} s are allowed"]
    return seconds, []


def find_missing(model: Path) -> str:
    """Why a run cannot read its model on this node; empty if it can."""
    if (model / "config.json").is_file():
        return ""
    return f"model.path {model} {'has no config.json' if model.is_dir() else 'does not exist'}"


def examine_node(node: str, folder: Path, *, model: Path, gpus: int, deadline_s: float) -> NodeReport:
    """Do all checks of this node that need no other node.

    Args:
        node: name of this node.
        folder: folder on the file system that all nodes share.
        model: folder of the run's model, which each node may have on a disk of its own.
        gpus: number of GPUs on this node that the run is laid out for; 0 for a run on the CPU.
        deadline_s: seconds for the check of each of the two folders, which may hang.

    Returns:
        The report, without offsets.
    """
    written: list[tuple[float, list[str]]] = []
    looked: list[str] = []
    looking = threading.Thread(target=lambda: looked.append(find_missing(model)), daemon=True)
    looking.start()
    writing = threading.Thread(target=lambda: written.append(check_shared_folder(folder, node)), daemon=True)
    writing.start()
    found = examine_gpus(gpus) if gpus else None
    problems = check_space() + list(found.problems if found else ())
    writing.join(deadline_s)
    looking.join(deadline_s)
    seconds, of_folder = written[0] if written else (0.0, [f"{folder} has not answered for {deadline_s:.0f} s"])
    return NodeReport(
        node,
        problems=(*problems, *of_folder, *([] if looked else [f"{model} has not answered for {deadline_s:.0f} s"])),
        missing=looked[0] if looked else "",
        driver=found.driver if found else "",
        gpus=found.names if found else (),
        write_s=seconds,
    )


def judge(nodes: Sequence[str], reports: Mapping[str, NodeReport]) -> Verdict:
    """Decide which nodes are bad.

    If two nodes do not reach each other, not both are bad: the verdict names as few nodes as explain all such
    pairs, and of two equals the one that is later in `nodes`.

    Args:
        nodes: names of the job's nodes; the job script runs on the first.
        reports: complete reports by node; a node without one is bad.

    Returns:
        The verdict.
    """
    # A report that was garbled on its way may name a node that there is not.
    reports = {node: reports[node] for node in nodes if node in reports}
    bad: dict[str, list[str]] = {node: list(report.problems) for node, report in reports.items()}
    without = {node: report.missing for node, report in reports.items() if report.missing and not bad.get(node)}
    if without and len(without) == sum(not problems for problems in bad.values()):
        return Verdict(
            {node: tuple(reasons) for node, reasons in bad.items() if reasons}, (), next(iter(without.values()))
        )
    for node, missing in without.items():
        bad[node].append(missing)
    bad |= {node: ["it has not reported"] for node in nodes if node not in reports}
    apart = {
        frozenset((node, other))
        for node, report in reports.items()
        for other in report.unreachable
        if not bad[node] and not bad.get(other, ["unknown"])
    }
    while apart:
        worst = max(reversed(nodes), key=lambda node: sum(node in pair for pair in apart))
        cut_off = sorted(next(iter(pair - {worst})) for pair in apart if worst in pair)
        bad[worst].append(f"it and {', '.join(cut_off)} do not reach each other")
        apart = {pair for pair in apart if worst not in pair}
    good = [node for node in nodes if not bad[node]]
    for node, skew in _skews(good, reports).items():
        if abs(skew) > _LARGEST_SKEW_S:
            bad[node].append(f"its clock is off by {skew:+.1f} s, and {_LARGEST_SKEW_S:g} s is allowed")
    return Verdict({node: tuple(reasons) for node, reasons in bad.items() if reasons}, tuple(_notes(good, reports)))


def _skews(nodes: Sequence[str], reports: Mapping[str, NodeReport]) -> dict[str, float]:
    """Clocks minus the clock of the node that agrees with the most others."""
    offsets = {node: {node: 0.0, **reports[node].offsets} for node in nodes}
    if not nodes:
        return {}
    reference = min(nodes, key=lambda node: statistics.median(abs(offset) for offset in offsets[node].values()))
    return {node: offsets[reference].get(node, 0.0) for node in nodes}


def _notes(nodes: Sequence[str], reports: Mapping[str, NodeReport]) -> list[str]:
    if not nodes:
        return []
    slowest = max(nodes, key=lambda node: reports[node].write_s)
    notes = [f"the slowest writes 4 MiB to the shared folder in {reports[slowest].write_s:.2f} s ({slowest})"]
    drivers = {reports[node].driver for node in nodes} - {""}
    if drivers:
        notes.append(f"GPUs: {', '.join(sorted({name for node in nodes for name in reports[node].gpus}))}")
        notes.append(f"drivers: {', '.join(sorted(drivers))}" + (" (they differ)" if len(drivers) > 1 else ""))
    return notes
