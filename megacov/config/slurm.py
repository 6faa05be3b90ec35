"""Settings of the SLURM job that `megacov launch` submits. Settings of a site belong into a file of slurm/sites."""

from __future__ import annotations

import re

from pydantic import Field, StrictFloat, StrictInt, field_validator

from megacov.config.secret_values import is_secret, is_secret_value
from megacov.config.section import Section

_NAMES = re.compile(r"[A-Za-z0-9._,-]+")
_HOSTS = re.compile(r"[A-Za-z0-9._,\[\]-]+")
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?", re.DOTALL)

SET_BY = {
    "array": "--seeds",
    "constraint": "slurm.constraint",
    "dependency": "--chain",
    "exclude": "slurm.exclude",
    "gpus": "cluster.gpus_per_node",
    "gpus-per-node": "cluster.gpus_per_node",
    "gres": "slurm.gres",
    "job-name": "run.name",
    "nodes": "cluster.nodes",
    "output": "run.directory",
    "partition": "slurm.partition",
    "qos": "slurm.qos",
    "reservation": "slurm.reservation",
    "signal": "slurm.signal_lead_s",
    "time": "slurm.time_limit_min",
}
"""Settings from which options of sbatch follow."""

FIXED = frozenset(
    (
        *("chdir", "exclusive", "help", "mem", "mem-per-cpu", "mem-per-gpu", "no-kill", "no-requeue", "ntasks"),
        *("ntasks-per-gpu", "ntasks-per-node", "open-mode", "parsable", "requeue", "test-only", "usage", "version"),
        *("wait", "wrap"),
    )
)
"""Options of sbatch that job scripts, or the way in which they are submitted, do not leave open."""


class SlurmSection(Section):
    """The job; training does not read this section."""

    partition: str | None = None
    """Partition of the job, or several with commas or as a list; null for that of the site, or else the cluster's."""
    qos: str | None = None
    """Quality of service of the job; null for that of the site."""
    reservation: str | None = None
    """Reservation from which the job gets its nodes, or several with commas."""
    constraint: str | None = None
    """Features that its nodes must have, as in "h100&ib"."""
    gres: str | None = None
    """Generic resources of each node, as in "gpu:h100:8"; with a gpu in it, the job asks for GPUs in no other way."""
    exclude: str | None = None
    """Nodes that the job must not get, as a list or as in "node[1-3],node7"."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, each as one text, as in ["--mail-type=END", "--comment=a run"]."""
    time_limit_min: StrictInt = Field(240, ge=2)
    """Time limit of the job; the run continues in a requeued one. [minutes]"""
    signal_lead_s: StrictInt = Field(300, ge=60)
    """Time before the limit at which the run is asked to save and leave. [s]"""
    max_requeues: StrictInt = Field(5, ge=0)
    """Most requeues in a row without a new checkpoint. [requeues]"""
    preflight: bool = True
    """Check the nodes at each start, and requeue the job without the bad ones."""
    least_all_reduce: StrictFloat | None = Field(None, ge=0)
    """Bandwidth of a link that an all-reduce over all ranks must reach in the preflight; null only measures it, and
    only on GPUs. [GB/s]"""
    heterogeneous: bool = False
    """Make trainer and rollout servers the components of a heterogeneous job, instead of nodes of one plain job."""
    server_partition: str | None = None
    """Partition of the rollout servers in a heterogeneous job, or several; null for that of the trainer."""

    @field_validator(
        "partition", "server_partition", "exclude", mode="before", json_schema_input_type=str | list[str] | None
    )
    @classmethod
    def _lists_are_joined(cls, names: object) -> object:
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return ",".join(names)
        return names

    @field_validator("partition", "server_partition", "qos", "reservation")
    @classmethod
    def _names_are_plain(cls, names: str | None) -> str | None:
        return _matched(names, _NAMES, "letters, digits, dots and dashes, with commas between several")

    @field_validator("exclude")
    @classmethod
    def _hosts_are_plain(cls, hosts: str | None) -> str | None:
        return _matched(hosts, _HOSTS, "letters, digits, dots, dashes, and ranges such as [1-3], with commas between")

    @field_validator("constraint", "gres")
    @classmethod
    def _one_line(cls, text: str | None) -> str | None:
        if text is not None:
            _check_line(text)
        return text

    @field_validator("extra")
    @classmethod
    def _options_are_free(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            _check_option(option)
        return options


def _matched(text: str | None, pattern: re.Pattern[str], what: str) -> str | None:
    if text is not None and (not pattern.fullmatch(text) or not all(text.split(","))):
        raise ValueError(f"SLURM's names consist of {what}.")
    return text


def _check_line(text: str) -> None:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} is empty, or holds a line break or another character that #SBATCH lines cannot.")


def _check_option(option: str) -> None:
    match = _OPTION.fullmatch(option)
    if match is None:
        raise ValueError(f"{option!r} is not an option of sbatch in its long form: write --name or --name=value.")
    _check_line(option)
    name, value = match[1], match[2] or ""
    # sbatch accepts any beginning of a name, such as --part.
    known = next((each for each in (*SET_BY, *sorted(FIXED)) if each.startswith(name)), None)
    if known in SET_BY:
        raise ValueError(f"{option!r} sets --{known}, which follows from {SET_BY[known]}: remove it, and set that.")
    if known is not None:
        raise ValueError(f"{option!r} sets --{known}, which the job script does not leave open: remove it.")
    exported = [pair.partition("=")[::2] for pair in value.split(",")] if "export".startswith(name) else []
    if is_secret_value(value) or any(is_secret(*pair) for pair in exported if pair[1]):
        raise ValueError(
            f"the value of --{name} looks like a secret, and others can read job scripts: export it in the shell "
            "that runs `megacov launch`, whose environment the job inherits."
        )
