"""GPUs of this node and their faults, as `nvidia-smi` reports them. The tool comes with the driver: no torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

_TIMEOUT_S = 30
# The driver takes a few hundred MiB; more belongs to a process of an earlier job.
_MAX_USED_MIB = 2048


class Gpus(NamedTuple):
    """GPUs of a node.

    problems: one sentence for each; empty if all GPUs can be used.
    """

    driver: str
    names: tuple[str, ...]
    problems: tuple[str, ...]


def examine_gpus(wanted: int) -> Gpus:
    """Ask the driver of this node. `wanted` is the number of GPUs that the run is laid out for, at least one."""
    if shutil.which("nvidia-smi") is None:
        return Gpus("", (), ("there is no nvidia-smi: the driver is not installed",))
    try:
        report = _ask("-q", "-x")
        links = _ask("nvlink", "--status") if wanted > 1 else ""
    except (OSError, subprocess.SubprocessError) as error:
        return Gpus("", (), (f"nvidia-smi fails: {_last_line(error)}",))
    return judge_gpus(report, links, wanted=wanted)


def _ask(*options: str) -> str:
    return subprocess.run(
        ["nvidia-smi", *options],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_TIMEOUT_S,
        check=True,
    ).stdout


def _last_line(error: Exception) -> str:
    output = (error.stdout or error.stderr or "") if isinstance(error, subprocess.CalledProcessError) else ""
    return str((output.strip().splitlines() or [error])[-1])


def judge_gpus(report: str, links: str, *, wanted: int) -> Gpus:
    """Read the output of `nvidia-smi`.

    Args:
        report: output of `nvidia-smi -q -x`, XML.
        links: output of `nvidia-smi nvlink --status`; empty if links do not matter.
        wanted: number of GPUs that the run is laid out for.

    Returns:
        The GPUs and their problems.
    """
    try:
        log = ElementTree.fromstring(report)
    except ElementTree.ParseError as error:
        return Gpus("", (), (f"nvidia-smi prints no XML: {error}",))
    gpus = log.findall("gpu")
    problems = [f"{len(gpus)} GPUs, and the run is laid out for {wanted}"] if len(gpus) < wanted else []
    for i, gpu in enumerate(gpus):
        problems += [f"GPU {i} {problem}" for problem in _problems_of(gpu)]
    problems += _problems_of_links(links)
    names = tuple(gpu.findtext("product_name", "unknown") for gpu in gpus)
    return Gpus(log.findtext("driver_version", ""), names, tuple(problems))


def _problems_of(gpu: ElementTree.Element) -> Iterator[str]:
    volatile = gpu.find("ecc_errors/volatile")
    for each in () if volatile is None else volatile.iter():
        # DRAM and SRAM are counted under names that differ between generations.
        if "uncorrectable" in each.tag and (count := _number(each.text)) > 0:
            yield f"has {count:.0f} uncorrectable memory errors ({each.tag}) since the driver was loaded"
    if gpu.findtext("remapped_rows/remapped_row_pending", "No") == "Yes":
        yield "must be reset: rows of its memory wait to be remapped"
    if gpu.findtext("remapped_rows/remapped_row_failure", "No") == "Yes":
        yield "must be replaced: rows of its memory could not be remapped"
    if (used := _number(gpu.findtext("fb_memory_usage/used"))) > _MAX_USED_MIB:
        yield f"has {used:.0f} MiB in use before the run begins"


def _problems_of_links(links: str) -> Iterator[str]:
    """GPUs with fewer links than others. If none has a link, the node has no bridges, which is no problem."""
    counts: list[int] = []
    for line in links.splitlines():
        if re.match(r"GPU \d+:", line):
            counts.append(0)
        elif counts and re.search(r"Link \d+: .*GB/s", line):
            counts[-1] += 1
    for i, count in enumerate(counts):
        if count < max(counts):
            yield f"GPU {i} has {count} NVLinks, and others have {max(counts)}"


def _number(text: str | None) -> float:
    """The number at the start of a text such as "81559 MiB"; 0 for "N/A"."""
    found = re.match(r"\s*(\d+(\.\d+)?)", text or "")
    return float(found[1]) if found else 0.0
