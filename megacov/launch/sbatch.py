"""Job scripts from the templates in slurm/: bash with placeholders such as @NAME@, filled with quoted words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from megacov.errors import ConfigError, DataError
from megacov.launch.job import Job
from megacov.launch.site import Site

TEMPLATES = Path(__file__).parents[2] / "slurm"
PLACEHOLDER = re.compile(r"@([A-Z][A-Z_]*)@")

_PLAIN_OPTION = re.compile(r"[A-Za-z0-9_./+=,:%@-]+")
_GPU_RESOURCE = re.compile(r"^--gres=(.*,)?(gres/)?gpu\b")
_SLURM_PATH = re.compile(r"[A-Za-z0-9_./+=,:-]+")


def render(job: Job, *, templates: Path = TEMPLATES) -> str:
    """Write a job script.

    Args:
        job: everything that goes into the script.
        templates: folder of the templates.

    Returns:
        The script, which needs no other file.

    Raises:
        DataError: there are no templates.
        ConfigError: a path contains characters that an #SBATCH line cannot hold.
    """
    for path, what in ((job.run, "run.directory"), (job.folder, "the current folder")):
        if not _SLURM_PATH.fullmatch(str(path)):
            raise ConfigError(
                f"{what} is {str(path)!r}, and paths in #SBATCH lines cannot contain blanks, quotes or percent signs: "
                "choose another folder."
            )
    try:
        head = (templates / f"{job.layout.shape}.sbatch").read_text(encoding="utf-8")
        parts = {
            name: (templates / file).read_text(encoding="utf-8")
            for name, file in (("JOB", "job.sh"), ("PREFLIGHT_PART", "preflight.sh"), ("SERVERS_PART", "servers.sh"))
        }
    except OSError as error:
        raise DataError(f"{templates} has no templates of job scripts: run megacov from its repository.") from error
    # The comments for readers and for shellcheck at the top of a part end with its first blank line.
    script = head
    for name, part in parts.items():
        script = script.replace(f"@{name}@", part.partition("\n\n")[2].rstrip("\n"))
    values = _values(job)
    return PLACEHOLDER.sub(lambda match: values[match[1]], script)


def _values(job: Job) -> dict[str, str]:
    layout, servers, site = job.layout, job.servers, job.site
    return {
        "NAME": shlex.quote(job.name),
        "FOLDER": str(job.folder),
        "CONFIG": shlex.quote(str(job.config)),
        "RUN": shlex.quote(str(job.run)),
        "OUTPUT": str(job.run),
        "MODEL": shlex.quote(str(job.model)),
        "OVERRIDES": shlex.join(job.overrides),
        "SEED": str(job.seed),
        "NODES": str(layout.nodes),
        "TRAIN_NODES": str(layout.train_nodes),
        "RANKS_PER_NODE": str(layout.ranks_per_node),
        "SERVER_NODES": str(layout.server_nodes),
        "SERVERS": str(layout.servers),
        "SERVERS_PER_NODE": str(layout.servers_per_node),
        "NODES_PER_SERVER": str(layout.nodes_per_server),
        "GPUS_PER_NODE": str(job.gpus_per_node),
        "GPUS_PER_SERVER": str(layout.gpus_per_server if job.gpus_per_node else 0),
        "OPTIONS": _option_lines([*_node_options(job, job.partition), *_job_options(job)]),
        "SERVER_NODE_OPTIONS": _option_lines(_node_options(job, job.server_partition or job.partition)),
        "TIME_LIMIT_MIN": str(job.time_limit_min),
        "SIGNAL_LEAD_S": str(job.signal_lead_s),
        "MAX_REQUEUES": str(job.max_requeues),
        "ALL_REDUCE": shlex.join(job.all_reduce),
        "PREFLIGHT": str(int(job.preflight)),
        "LEAVE_S": str(job.leave_s),
        "HANG_S": f"{job.hang_s:g}",
        "START_TIMEOUT_S": str(servers.start_timeout_s if servers else 0),
        "SERVER_COMMAND": shlex.join(servers.command) if servers else "",
        "SERVER_ARGUMENTS": shlex.join(servers.arguments) if servers else "",
        "SERVER_ENVIRONMENT": shlex.join(_assignments(servers.environment)) if servers else "",
        "PYTHON": shlex.quote(job.python),
        "STEP_CONTAINER": shlex.join(_step_container(site, job.folder)),
        "CONTAINER_COMMAND": shlex.join(_container_command(site)),
        "SITE_LINES": "\n  ".join(_site_lines(site)) or ":",
        "JOB_OVERRIDES": 'job_overrides+=("weight_sync.host=$MASTER_ADDR")' if job.reached_by_servers else ":",
    }


def _option_lines(options: Iterable[str]) -> str:
    return "\n#SBATCH ".join(map(quote_option, options))


def quote_option(option: str) -> str:
    """Write an option for an #SBATCH line, which sbatch splits at blanks and cuts at #, and no shell expands.

    Args:
        option: an option such as --comment=a run, without line breaks.

    Returns:
        The option, in double quotes unless it is plain; sbatch reads a backslash as an escape in any quotes.
    """
    if _PLAIN_OPTION.fullmatch(option):
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _node_options(job: Job, partition: str) -> Iterator[str]:
    yield from ("--ntasks-per-node=1", "--exclusive", "--mem=0")
    if job.gpus_per_node and not any(_GPU_RESOURCE.search(option) for option in job.node_options):
        yield f"--gpus-per-node={job.gpus_per_node}"
    if partition:
        yield f"--partition={partition}"
    yield from job.node_options


def _job_options(job: Job) -> Iterator[str]:
    if job.site.account:
        yield f"--account={job.site.account}"
    if job.qos or job.site.qos:
        yield f"--qos={job.qos or job.site.qos}"
    yield from job.job_options


def _assignments(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _step_container(site: Site, folder: Path) -> list[str]:
    if site.container != "pyxis":
        return []
    mounts = [f"--container-mounts={site.mounts}"] if site.mounts else []
    return [f"--container-image={site.image}", f"--container-workdir={folder}", *mounts]


def _container_command(site: Site) -> list[str]:
    if site.container != "apptainer":
        return []
    mounts = ["--bind", site.mounts] if site.mounts else []
    return ["apptainer", "exec", "--nv", *mounts, site.image]


def _site_lines(site: Site) -> Iterator[str]:
    if site.modules:
        yield f"set +u; module load {shlex.join(site.modules)}; set -u"
    for name, value in site.environment.items():
        yield f"export {name}={shlex.quote(value)}"
