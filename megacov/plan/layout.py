"""Ranks on nodes: which machines of a job the trainer's groups and the rollout servers get.

Ranks are numbered as in Megatron (order tp-cp-ep-dp-pp): tensor-parallel ranks are neighbours, context-parallel groups
come next, and pipeline stages are outermost, so that a stage takes whole nodes if its size allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megacov.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Layout of the policy over ranks, with the sizes of a configuration's section `parallel`."""

    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1

    @property
    def ranks_per_stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor * self.context * self.data

    @property
    def world_size(self) -> int:
        """Ranks of the trainer."""
        return self.ranks_per_stage * self.pipeline

    @property
    def sequence_share(self) -> int:
        """Ranks that share the positions between two layers: the tensor-parallel ranks under sequence parallelism."""
        return self.tensor if self.sequence else 1

    @property
    def optimizer_shards(self) -> int:
        """Ranks that share the optimizer state of one shard of weights."""
        return self.data * self.context

    @property
    def expert_optimizer_shards(self) -> int:
        """Ranks that share the optimizer state of an expert, which is whole on one expert-parallel rank."""
        return self.ranks_per_stage // self.expert


@dataclass(frozen=True)
class Cluster:
    """The machines.

    nodes: number of nodes of the job; None for as many as the trainer needs.
    gpu_bytes: memory of a GPU.
    reserved_bytes: part of that memory which is not planned here: for CUDA itself, libraries and fragmentation.
    node_bytes: main memory of a node.
    """

    nodes: int | None
    gpus_per_node: int
    gpu_bytes: int
    reserved_bytes: int
    node_bytes: int

    @property
    def usable_bytes(self) -> int:
        """Memory of a GPU that the plan may use."""
        return self.gpu_bytes - self.reserved_bytes


@dataclass(frozen=True)
class ServerRequest:
    """The SGLang servers that a run asks for.

    tensor: GPUs that share the layers of one server.
    number: number of servers; None for as many as fit on the nodes.
    colocated: whether servers use the trainer's own GPUs.
    copies: data-parallel copies of a server, times its pipeline stages.
    on_whole_nodes: whether servers begin at the first node without a trainer rank.
    expert: groups of the GPUs of a server that hold different experts.
    """

    tensor: int
    number: int | None
    colocated: bool = False
    copies: int = 1
    on_whole_nodes: bool = False
    expert: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one server."""
        return self.tensor * self.copies


@dataclass(frozen=True)
class Placement:
    """The nodes of trainer and servers.

    nodes: number of nodes of the job.
    stage_nodes: first and last node of each pipeline stage.
    servers: number of rollout servers.
    server_nodes: first and last node with servers; None without servers.
    idle_gpus: GPUs of the job that neither trainer nor servers use.
    remarks: one sentence for each reason why the run will be slow.
    """

    nodes: int
    stage_nodes: tuple[tuple[int, int], ...]
    servers: int
    server_nodes: tuple[int, int] | None
    idle_gpus: int
    remarks: tuple[str, ...]


def place(layout: Layout, cluster: Cluster, request: ServerRequest | None) -> Placement:
    """Place the trainer from node 0 on, and rollout servers behind it.

    Args:
        layout: layout of the trainer.
        cluster: the machines.
        request: SGLang servers; None if none of them takes a GPU.

    Returns:
        The placement.

    Raises:
        ConfigError: the nodes have too few GPUs.
    """
    per_node = cluster.gpus_per_node
    extra = 0 if request is None or request.colocated else request.gpus * (request.number or 0)
    needed = layout.world_size + extra
    nodes = cluster.nodes or -(-needed // per_node)
    if needed > nodes * per_node:
        and_servers = f" and the servers {extra}" if extra else ""
        raise ConfigError(
            f"the trainer takes {layout.world_size} GPUs{and_servers}, and cluster.nodes {nodes} x "
            f"cluster.gpus_per_node {per_node} is {nodes * per_node}: add nodes, or lower parallel.data."
        )
    servers, first_gpu = _servers(layout, request, num_gpus=nodes * per_node, per_node=per_node)
    server_gpus = servers * request.gpus if request else 0
    span = (first_gpu // per_node, (first_gpu + server_gpus - 1) // per_node) if request and servers else None
    stage = layout.ranks_per_stage
    is_shared = request is None or request.colocated
    used = max(layout.world_size, server_gpus) if is_shared else layout.world_size + server_gpus
    return Placement(
        nodes=nodes,
        stage_nodes=tuple((s * stage // per_node, ((s + 1) * stage - 1) // per_node) for s in range(layout.pipeline)),
        servers=servers,
        server_nodes=span,
        idle_gpus=nodes * per_node - used,
        remarks=tuple(_remarks(layout, cluster, request)),
    )


def _servers(layout: Layout, request: ServerRequest | None, *, num_gpus: int, per_node: int) -> tuple[int, int]:
    """Number of servers, and the first GPU of the first one."""
    if request is None:
        return 0, 0
    if request.colocated:
        return request.number or layout.world_size // request.gpus, 0
    begin = layout.world_size
    if request.on_whole_nodes:
        begin = -(-begin // per_node) * per_node
    return (num_gpus - begin) // request.gpus if request.number is None else request.number, begin


def _remarks(layout: Layout, cluster: Cluster, request: ServerRequest | None) -> Iterator[str]:
    per_node, with_context = cluster.gpus_per_node, layout.tensor * layout.context
    if _crosses_nodes(layout.tensor, per_node):
        yield (
            f"parallel.tensor is {layout.tensor} and a node has {per_node} GPUs: tensor-parallel groups cross nodes, "
            "so every layer waits for the network."
        )
    elif layout.context > 1 and _crosses_nodes(with_context, per_node):
        yield (
            f"parallel.tensor x parallel.context is {with_context} and a node has {per_node} GPUs: keys and values of "
            "every layer cross nodes."
        )
    if request is not None and _crosses_nodes(request.gpus, per_node):
        yield f"a server has {request.gpus} GPUs and a node {per_node}: servers cross nodes."


def _crosses_nodes(group: int, per_node: int) -> bool:
    """Whether any group of so many neighbouring ranks lies on several nodes."""
    return per_node % group != 0
