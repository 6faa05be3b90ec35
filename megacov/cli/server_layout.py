"""What a configuration says of its rollout servers: how large they are, and which nodes of a job they get."""

from __future__ import annotations

from typing import Any

from megacov.config import RunConfig
from megacov.config.transports import choose_transport
from megacov.errors import ConfigError
from megacov.launch.job import JobLayout, lay_out
from megacov.plan import ModelSizes, ServerRequest

_TENSOR = ("tp-size", "tensor-parallel-size", "tp")
_PIPELINE = ("pp-size", "pipeline-parallel-size", "pp")
_DATA = ("dp-size", "data-parallel-size", "dp")


def server_arguments(config: RunConfig) -> dict[str, Any]:
    """Options of the servers.

    Args:
        config: of the run.

    Returns:
        Them by their names on a command line, without dashes before it.
    """
    return {name.replace("_", "-"): value for name, value in config.rollout.server_arguments.items()}


def job_layout(config: RunConfig) -> JobLayout:
    """The nodes of a job of the run.

    Args:
        config: of the run.

    Returns:
        The layout, with the servers that the job starts.

    Raises:
        ConfigError: the nodes cannot be shared out that way, or servers cannot be of that size.
    """
    return lay_out(
        ranks=config.world_size,
        gpus_per_node=config.cluster.gpus_per_node,
        nodes=config.cluster.nodes,
        gpus_per_server=None if config.rollout.addresses_file is None else _tensor(config) * _copies(config),
        colocated=config.rollout.colocated,
        heterogeneous=config.slurm.heterogeneous,
    )


def server_request(config: RunConfig) -> ServerRequest | None:
    """The SGLang servers that take GPUs.

    Args:
        config: of the run.

    Returns:
        What is asked for; None where no server takes a GPU.

    Raises:
        ConfigError: as `job_layout`, for servers that a job starts.
    """
    rollout = config.rollout
    if rollout.engine == "embedded" or server_arguments(config).get("device") == "cpu":
        return None
    of_job = rollout.addresses_file is not None
    number = job_layout(config).servers if of_job else rollout.servers or len(rollout.addresses) or None
    return ServerRequest(
        _tensor(config), number, colocated=rollout.colocated, copies=_copies(config), on_whole_nodes=of_job
    )


def check_server_heads(sizes: ModelSizes, tensor: int) -> None:
    """Refuse servers that SGLang would not start: it asserts the same in each of its models.

    Args:
        sizes: of the model.
        tensor: GPUs that share its layers.

    Raises:
        ConfigError: they cannot share its heads.
    """
    heads, key_heads = sizes.num_attention_heads, sizes.num_key_value_heads
    if heads % tensor or max(key_heads, tensor) % min(key_heads, tensor):
        raise ConfigError(
            f"rollout.server_arguments.tp-size is {tensor} and the model has {heads} attention heads and {key_heads} "
            "key and value heads, which SGLang cannot share out over so many GPUs: choose a divisor of both."
        )


def _tensor(config: RunConfig) -> int:
    return _size(config, _TENSOR)


def _copies(config: RunConfig) -> int:
    """Pipeline stages times data-parallel copies of a server, each on GPUs of its own."""
    copies = _size(config, _PIPELINE) * _size(config, _DATA)
    if copies > 1 and config.weight_sync.traits.tensor_parallel_only:
        raise ConfigError(
            f"rollout.server_arguments asks for {copies} data-parallel copies or pipeline stages, and "
            f"weight_sync.transport is {config.weight_sync.transport}, which reaches tensor-parallel ranks only: "
            f"remove dp-size and pp-size, or set {choose_transport(lambda other: not other.tensor_parallel_only)}."
        )
    return copies


def _size(config: RunConfig, names: tuple[str, ...]) -> int:
    """Of several spellings, the server takes the last."""
    return int([1, *(value for name, value in server_arguments(config).items() if name in names)][-1])
