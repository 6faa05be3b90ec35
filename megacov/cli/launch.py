"""megacov launch: submit a run as a SLURM job that survives its time limit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from megacov.cli.checks import Remark, Subject, find_remarks, refuse_impossible, show_remarks
from megacov.cli.deep import look_deeper
from megacov.cli.job_places import container_mounts
from megacov.cli.model_source import with_local_model
from megacov.cli.server_layout import job_layout, leave_seconds, server_arguments, signal_lead_problem
from megacov.config import RunConfig, load_config
from megacov.config.slurm import SlurmSection
from megacov.errors import ConfigError, DataError
from megacov.files import write_atomically
from megacov.launch.job import Job, Servers, as_arguments
from megacov.launch.loader import with_loader
from megacov.launch.partitions import ask_partitions, check_partition
from megacov.launch.sbatch import render
from megacov.launch.site import Site, read_site
from megacov.launch.submit import submit_chain

# Size of the all-reduce that checks the network: enough to fill the links.
_CPU_MIB, _GPU_MIB = 8, 512


def launch(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as in run.steps=5.")] = None,
    site: Annotated[Path | None, typer.Option(help="File of the cluster, such as slurm/sites/generic.env.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script and submit nothing.")] = False,
    chain: Annotated[int, typer.Option(min=1, help="Jobs of a chain, each after the one before.")] = 1,
    seeds: Annotated[str, typer.Option(help="One run for each of these seeds, as in 0,1,2.")] = "",
) -> None:
    """Submit a run as a SLURM job, which continues from its last checkpoint whenever it starts again."""
    run, numbers = load_config(config, overrides or []), _parse_seeds(seeds)
    cluster = read_site(site) if site else Site()
    run, job = prepare_job(run, config, overrides or [], cluster, num_seeds=len(numbers), dry_run=dry_run)
    if dry_run:
        print(render(job))
        return
    for job_id in submit_job(run, job, chain=chain, seeds=numbers):
        print(f"submitted job {job_id}: {job.run}.sbatch")


def prepare_job(
    run: RunConfig,
    config: Path,
    overrides: list[str],
    cluster: Site,
    *,
    num_seeds: int,
    dry_run: bool = False,
    is_deep: bool = True,
) -> tuple[RunConfig, Job]:
    """Check a run as far as the login node can, show warnings, and make its job.

    Args:
        run: configuration that has passed the rules.
        config: file of the configuration.
        overrides: settings that the user changed on the command line.
        cluster: settings of the cluster.
        num_seeds: number of runs of the job, one for each seed; 0 for a plain job.
        dry_run: whether nothing is downloaded, and the job may run elsewhere.
        is_deep: whether to import what the run names, and to open its data and tokenizer.

    Returns:
        The configuration with a local model, and the job.

    Raises:
        MegacovError: the run cannot work, or the cluster cannot take it.
    """
    run, fetched = with_local_model(run, downloads=not dry_run)
    is_elsewhere = dry_run or bool(cluster.container)
    found = find_remarks(Subject(run, "launch", is_elsewhere=is_elsewhere, is_deep=is_deep))
    refuse_impossible(found)
    found = [*(Remark("warning", sentence) for sentence in cluster.left_out), *found]
    job = make_job(run, config, [*overrides, *fetched], cluster)
    if num_seeds and job.layout.shape == "heterogeneous":
        raise ConfigError(
            "SLURM does not support arrays of heterogeneous jobs: remove --seeds, or set slurm.heterogeneous=false."
        )
    if num_seeds > 1:
        _refuse_shared(run)
    render(job)  # which refuses paths that no script can hold
    if is_deep:
        found += look_deeper(run, same_python=not dry_run and _is_python_of_job(cluster))
    refuse_impossible(found)
    _check_partitions(job)
    show_remarks(found)
    return run, job


def submit_job(run: RunConfig, job: Job, *, chain: int, seeds: Sequence[int]) -> list[str]:
    """Write the script of a job beside the run's folder, and submit it.

    Args:
        run: configuration of the run.
        job: its job.
        chain: jobs of a chain.
        seeds: seeds of the runs, each a task of an array; empty for a plain job.

    Returns:
        Ids of the jobs.

    Raises:
        DataError: the script cannot be written.
        SubmitError: SLURM does not take a job.
    """
    path = Path(f"{job.run}.sbatch")
    try:
        # Folders that are mounted into a container must exist.
        for folder in (path.parent, run.weight_sync.directory):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render(job))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error
    return submit_chain(path, links=chain, seeds=seeds)


def _is_python_of_job(site: Site) -> bool:
    """Whether the job's Python finds what the one of this command finds."""
    return not (site.container or site.python or site.modules or "PYTHONPATH" in site.environment)


def make_job(run: RunConfig, config: Path, overrides: list[str], site: Site) -> Job:
    """From a configuration to a job of plain values, which is all that `megacov.launch` sees.

    Args:
        run: configuration that has passed the rules.
        config: file of the configuration.
        overrides: settings that the user changed on the command line.
        site: settings of the cluster.

    Returns:
        The job.

    Raises:
        ConfigError: the run does not fit its nodes, has too little time to leave, or reads what its container does not
            see.
    """
    slurm, sync = run.slurm, run.weight_sync
    problem = signal_lead_problem(run)
    if problem is not None:
        raise ConfigError(problem)
    if site.container:
        site = replace(site, mounts=container_mounts(run, config, site))
    layout = job_layout(run)
    servers = _servers(run) if layout.servers else None
    return Job(
        name=run.run.name,
        folder=Path.cwd(),
        config=config.absolute(),
        run=run.run.directory.absolute(),
        model=run.model.path.absolute(),
        overrides=tuple(each for each in overrides if each.partition("=")[0].strip() != "run.directory"),
        seed=run.run.seed,
        layout=layout,
        gpus_per_node=0 if run.parallel.backend == "gloo" else run.cluster.gpus_per_node,
        servers=servers,
        time_limit_min=slurm.time_limit_min,
        signal_lead_s=slurm.signal_lead_s,
        max_requeues=slurm.max_requeues,
        preflight=slurm.preflight,
        all_reduce=_all_reduce(run),
        leave_s=leave_seconds(run),
        hang_s=run.parallel.hang_s,
        reached_by_servers=servers is not None and sync.traits.servers_call_back and sync.host == "127.0.0.1",
        python=site.python or ("python" if site.container else sys.executable),
        site=site,
        partition=slurm.partition or site.partition,
        server_partition=slurm.server_partition or "",
        qos=slurm.qos or "",
        node_options=_node_options(slurm),
        job_options=_extra_options(slurm.extra, site),
    )


def _node_options(slurm: SlurmSection) -> tuple[str, ...]:
    """Options of sbatch for each component of a job."""
    options = {
        "reservation": slurm.reservation,
        "constraint": slurm.constraint,
        "gres": slurm.gres,
        "exclude": slurm.exclude,
    }
    return tuple(f"--{name}={value}" for name, value in options.items() if value)


def _extra_options(options: tuple[str, ...], site: Site) -> tuple[str, ...]:
    for option in options:
        name = option.partition("=")[0].removeprefix("--")
        if site.account and "account".startswith(name):
            raise ConfigError(f"slurm.extra has {option!r}, and the site sets MEGACOV_ACCOUNT: remove one of them.")
    return options


def _check_partitions(job: Job) -> None:
    partitions = ask_partitions()
    if isinstance(partitions, str):
        print(f"megacov: {partitions}", file=sys.stderr)
        return
    wanted = {job.partition: job.layout.nodes}
    if job.layout.shape == "heterogeneous" and job.server_partition not in ("", job.partition):
        wanted = {job.partition: job.layout.train_nodes, job.server_partition: job.layout.server_nodes}
    for name, nodes in wanted.items():
        check_partition(partitions, name, nodes=nodes, minutes=job.time_limit_min)


def _refuse_shared(run: RunConfig) -> None:
    """Refuse what the runs of several seeds would share, each overwriting the weights of the others."""
    if run.weight_sync.traits.keeps_copy and run.weight_sync.directory is not None:
        raise ConfigError(
            f"weight_sync.directory is {run.weight_sync.directory}, and the runs of --seeds need a folder each: leave "
            "it out, so that each run keeps its weights in its own folder, or submit the seeds one by one."
        )
    if run.rollout.addresses or run.rollout.addresses_file is not None:
        name = "addresses" if run.rollout.addresses else "addresses_file"
        raise ConfigError(
            f"rollout.{name} names servers that the runs of --seeds would share, and each run gives them its own "
            "weights: submit the seeds one by one, each with servers of its own."
        )


def _parse_seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise ConfigError(f"--seeds is {text!r}: give different numbers, as in 0,1,2.")
    return [int(word) for word in words]


def _all_reduce(run: RunConfig) -> tuple[str, ...]:
    """Arguments of the network check; empty if there is no check."""
    on_cpu, least = run.parallel.backend == "gloo", run.slurm.least_all_reduce
    if not run.slurm.preflight or run.world_size == 1 or (on_cpu and least is None):
        return ()
    return ("gloo", str(_CPU_MIB), f"{least or 0:g}") if on_cpu else ("nccl", str(_GPU_MIB), f"{least or 0:g}")


def _servers(run: RunConfig) -> Servers:
    rollout, loader = run.rollout, run.weight_sync.traits.loader
    arguments, environment = with_loader(server_arguments(run), rollout.server_environment, loader)
    if rollout.colocated:
        arguments["enable-memory-saver"] = True
    return Servers(
        command=rollout.server_command,
        arguments=as_arguments(arguments | {"model-path": str(run.model.path.absolute()), "dtype": run.model.dtype}),
        environment=environment,
        start_timeout_s=int(rollout.start_timeout_s),
    )
