"""Limits of a cluster's partitions, so that a job that could never start is refused before it is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacov.errors import ConfigError, SubmitError
from megacov.launch.slurm import ask_slurm, complaint, read_count, read_seconds

ASK_PARTITIONS = ("scontrol", "show", "partition", "--oneliner")


@dataclass(frozen=True)
class Partition:
    """A partition; None means no limit."""

    name: str
    is_default: bool
    is_up: bool
    nodes: int
    max_nodes: int | None
    max_minutes: int | None


def ask_partitions() -> tuple[Partition, ...] | str:
    """Ask SLURM for the partitions. Returns a sentence instead if they cannot be known."""
    try:
        answer = ask_slurm(*ASK_PARTITIONS)
    except SubmitError as error:
        return f"the partition is not checked: {error}"
    if answer.returncode:
        return f"the partition is not checked: {complaint(answer)}"
    try:
        return parse_partitions(answer.stdout)
    except SubmitError as error:
        return f"the partition is not checked: {error}"


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Read the output of `scontrol show partition --oneliner`. Raises SubmitError if a number in it is none."""
    found = []
    for line in text.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" not in words:
            continue
        max_nodes, max_seconds = words.get("MaxNodes", "UNLIMITED"), read_seconds(words.get("MaxTime", "UNLIMITED"))
        found.append(
            Partition(
                words["PartitionName"],
                is_default=words.get("Default") == "YES",
                is_up=words.get("State", "UP") == "UP",
                nodes=read_count(words.get("TotalNodes", "0")),
                max_nodes=read_count(max_nodes) if max_nodes[:1].isdigit() else None,
                max_minutes=None if max_seconds is None else max_seconds // 60,
            )
        )
    return tuple(found)


def check_partition(partitions: Sequence[Partition], name: str, *, nodes: int, minutes: int) -> None:
    """Refuse a job that would wait for ever.

    Args:
        partitions: all partitions of the cluster.
        name: name of a partition, or several names with commas between, one of which must take the job; empty for the
            default partition.
        nodes: number of nodes that the job asks for.
        minutes: time limit of the job.

    Raises:
        ConfigError: there is no such partition, or it does not take the job.
    """
    there_are = ", ".join(each.name for each in partitions) or "none"
    refusals = []
    for one in name.split(","):
        named = [each for each in partitions if each.name == one or (not one and each.is_default)]
        if not named:
            what = f"there is no partition {one}" if one else "the cluster has no default partition"
            raise ConfigError(f"{what}; there are {there_are}: set slurm.partition, or MEGACOV_PARTITION of the site.")
        refusals.append(_refusal(named[0], nodes=nodes, minutes=minutes, there_are=there_are))
    if all(refusals):
        raise ConfigError(refusals[0])


def _refusal(partition: Partition, *, nodes: int, minutes: int, there_are: str) -> str:
    """Why a partition does not take a job; empty if it does."""
    where = f"the partition {partition.name}"
    if not partition.is_up:
        return f"{where} takes no jobs now: set slurm.partition to another one ({there_are})."
    if nodes > partition.nodes:
        return f"the job takes {nodes} nodes and {where} has {partition.nodes}: take fewer, or another partition."
    if partition.max_nodes is not None and nodes > partition.max_nodes:
        return f"the job takes {nodes} nodes and {where} gives a job at most {partition.max_nodes}: take fewer."
    if partition.max_minutes is not None and minutes > partition.max_minutes:
        return (
            f"slurm.time_limit_min is {minutes} and the limit of {where} is {partition.max_minutes} minutes: lower it; "
            "the run continues in a requeued job."
        )
    return ""
