"""GPUs of this node as `nvidia-smi` tells of them, and what is wrong with them. The driver's own tool: no torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

_TIMEOUT_S = 30
# A few hundred MiB belong to the driver; more is a process of an earlier job.
_MAX_USED_MIB = 2048


class Gpus(NamedTuple):
    """What was found.

    problems: sentences; none where all GPUs may be used.
    """

    driver: str
    names: tuple[str, ...]
    problems: tuple[str, ...]


def examine_gpus(wanted: int) -> Gpus:
    """Ask the driver of this node.

    Args:
        wanted: GPUs that the run is laid out for, at least one.

    Returns:
        What was found.
    """
    if shutil.which("nvidia-smi") is None:
        return Gpus("", (), ("there is no nvidia-smi: the driver is not installed",))
    try:
        told = _ask("-q", "-x")
        links = _ask("nvlink", "--status") if wanted > 1 else ""
    except (OSError, subprocess.SubprocessError) as error:
        return Gpus("", (), (f"nvidia-smi fails: {_last_line(error)}",))
    return judge_gpus(told, links, wanted=wanted)


def _ask(*options: str) -> str:
    return subprocess.run(
        ["nvidia-smi", *options], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    ).stdout


def _last_line(error: Exception) -> str:
    said = (error.stdout or error.stderr or "") if isinstance(error, subprocess.CalledProcessError) else ""
    return str((said.strip().splitlines() or [error])[-1])


def judge_gpus(told: str, links: str, *, wanted: int) -> Gpus:
    """Read what `nvidia-smi` has printed.

    Args:
        told: by `nvidia-smi -q -x`, XML.
        links: by `nvidia-smi nvlink --status`; empty where it was not asked.
        wanted: GPUs that the run is laid out for.

    Returns:
        What was found.
    """
    try:
        log = ElementTree.fromstring(told)
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
        # Of DRAM and SRAM, under names that differ between generations.
        if "uncorrectable" in each.tag and (count := _number(each.text)) > 0:
            yield f"has {count:.0f} uncorrectable memory errors ({each.tag}) since the driver was loaded"
    if gpu.findtext("remapped_rows/remapped_row_pending", "No") == "Yes":
        yield "must be reset: rows of its memory wait to be remapped"
    if gpu.findtext("remapped_rows/remapped_row_failure", "No") == "Yes":
        yield "must be replaced: rows of its memory could not be remapped"
    if (used := _number(gpu.findtext("fb_memory_usage/used"))) > _MAX_USED_MIB:
        yield f"has {used:.0f} MiB in use before the run begins"


def _problems_of_links(links: str) -> Iterator[str]:
    """GPUs with fewer links than others; where all have none, there are no bridges."""
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
