"""The parts of a run's SLURM job: nodes for the trainer, nodes for the rollout servers, and what runs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megacov.errors import ConfigError
from megacov.launch.site import Site

_PORTS = 16  # ports for servers on a node, as slurm/job.sh assigns them

Shape = Literal["split", "heterogeneous", "colocated"]


@dataclass(frozen=True)
class JobLayout:
    """Nodes of a job. All of them train if the job has no servers, or colocated ones.

    servers_per_node: 1 if a server takes several nodes.
    gpus_per_server: GPUs of a server on each of its nodes.
    """

    shape: Shape
    train_nodes: int
    ranks_per_node: int
    server_nodes: int = 0
    servers: int = 0
    servers_per_node: int = 1
    nodes_per_server: int = 1
    gpus_per_server: int = 1

    @property
    def nodes(self) -> int:
        """Nodes of the whole job."""
        return self.train_nodes + (0 if self.shape == "colocated" else self.server_nodes)


@dataclass(frozen=True)
class Servers:
    """The SGLang servers that a job starts.

    command: command that starts one server, without options.
    arguments: options that all servers share.
    environment: variables that are added to those of the job.
    start_timeout_s: seconds within which the servers must listen.
    """

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: int = 300


@dataclass(frozen=True)
class Job:
    """Everything that goes into a job script. Paths are absolute.

    folder: current folder of the job, to which the run's relative paths refer.
    gpus_per_node: GPUs that the job asks for on each node; 0 for a run on the CPU.
    overrides: settings that the user gave, without run.directory.
    preflight: whether nodes are checked before anything starts on them.
    all_reduce: arguments of `megacov.trainer.all_reduce_check`; empty for no check.
    leave_s: seconds in which ranks must save and leave.
    hang_s: seconds after which a rank without progress counts as hanging.
    reached_by_servers: whether trainer and servers meet at the address of the trainer's first node.
    node_options: options of sbatch that choose nodes, for each component of the job.
    job_options: options of sbatch for the whole job; in a heterogeneous job they go to the trainer's component.
    """

    name: str
    folder: Path
    config: Path
    run: Path
    model: Path
    overrides: tuple[str, ...]
    seed: int
    layout: JobLayout
    gpus_per_node: int
    servers: Servers | None
    time_limit_min: int
    signal_lead_s: int
    max_requeues: int
    preflight: bool
    all_reduce: tuple[str, ...]
    leave_s: int
    hang_s: float
    reached_by_servers: bool
    python: str
    site: Site
    partition: str = ""
    server_partition: str = ""
    qos: str = ""
    node_options: tuple[str, ...] = ()
    job_options: tuple[str, ...] = ()


def lay_out(
    *,
    ranks: int,
    gpus_per_node: int,
    nodes: int | None,
    gpus_per_server: int | None,
    colocated: bool,
    heterogeneous: bool,
) -> JobLayout:
    """Assign nodes to trainer and servers.

    Args:
        ranks: number of trainer ranks, one for each GPU.
        gpus_per_node: number of GPUs of every node.
        nodes: number of nodes of the whole job; None if only the trainer runs in it, and servers elsewhere.
        gpus_per_server: number of GPUs of each server that the job may start; None if it starts none.
        colocated: whether servers share the nodes of the trainer.
        heterogeneous: whether trainer and servers are components of a heterogeneous job.

    Returns:
        The layout, in which servers fill their nodes.

    Raises:
        ConfigError: trainer and servers do not fit the nodes.
    """
    train_nodes, ranks_per_node = _trainer(ranks, gpus_per_node)
    spare = (nodes or train_nodes) - train_nodes
    if spare < 0 or (spare > 0 and (gpus_per_server is None or colocated)):
        raise ConfigError(
            f"cluster.nodes is {nodes} and the trainer takes {train_nodes}: correct cluster.nodes, or the layout; "
            "more nodes are only for servers that are not colocated, named by rollout.addresses_file."
        )
    if nodes is not None and spare == 0 and gpus_per_server is not None and not colocated:
        raise ConfigError(
            f"cluster.nodes is {nodes}, all of which train, and servers named by rollout.addresses_file take whole "
            "nodes: raise cluster.nodes, leave it out if servers run outside of the job, or let the trainer start them "
            "by rollout.servers."
        )
    server_nodes = train_nodes if colocated else spare
    if gpus_per_server is None or server_nodes == 0:
        return JobLayout("colocated", train_nodes, ranks_per_node)
    shape: Shape = "colocated" if colocated else "heterogeneous" if heterogeneous else "split"
    per_node, per_server = _servers(gpus_per_server, gpus_per_node, server_nodes)
    return JobLayout(
        shape,
        train_nodes,
        ranks_per_node,
        server_nodes=server_nodes,
        servers=server_nodes * per_node // per_server,
        servers_per_node=per_node,
        nodes_per_server=per_server,
        gpus_per_server=gpus_per_server // per_server,
    )


def _trainer(ranks: int, gpus_per_node: int) -> tuple[int, int]:
    """Number of nodes, and of ranks on each."""
    nodes = -(-ranks // gpus_per_node)
    if ranks % nodes:
        raise ConfigError(
            f"the trainer has {ranks} ranks and cluster.gpus_per_node is {gpus_per_node}: {nodes} nodes cannot have "
            "equally many of them; change the layout."
        )
    return nodes, ranks // nodes


def _servers(gpus_per_server: int, gpus_per_node: int, nodes: int) -> tuple[int, int]:
    """Number of servers on a node, and of nodes that a server takes; one of the two is 1."""
    if gpus_per_server <= gpus_per_node:
        if gpus_per_node // gpus_per_server > _PORTS:
            raise ConfigError(
                f"{gpus_per_node // gpus_per_server} servers would be on each node, and a job has ports for {_PORTS}: "
                "raise rollout.server_arguments.tp-size."
            )
        return gpus_per_node // gpus_per_server, 1
    per_server = gpus_per_server // gpus_per_node
    if gpus_per_server % gpus_per_node or nodes % per_server:
        raise ConfigError(
            f"rollout.server_arguments.tp-size is {gpus_per_server}, and {nodes} nodes of {gpus_per_node} GPUs are for "
            "servers: such servers take whole nodes, all of them; change tp-size or cluster.nodes."
        )
    return 1, per_server


def as_arguments(options: Mapping[str, object]) -> tuple[str, ...]:
    """Options as words of a command line.

    Args:
        options: values by name without dashes. True gives the option without a value, False leaves it out, and a list
            gives several words.

    Returns:
        The words.
    """
    words: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, Sequence) and not isinstance(value, str):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return tuple(words)
