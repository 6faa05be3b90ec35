"""The rollout servers of a configuration: their sizes, and the nodes of a job that they get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megacov.config import RunConfig
from megacov.config.suite import SuiteSection
from megacov.config.transports import choose_transport
from megacov.errors import ConfigError
from megacov.launch.job import JobLayout, lay_out
from megacov.plan import ModelSizes, ServerRequest

_TENSOR = ("tp-size", "tensor-parallel-size", "tp")
_PIPELINE = ("pp-size", "pipeline-parallel-size", "pp")
_EXPERT = ("ep-size", "expert-parallel-size", "ep")
_DATA = ("dp-size", "data-parallel-size", "dp")
_FRACTION = "mem-fraction-static"

CLOSING_S = 10
"""Seconds that the ranks of a job need, beyond their grace, to close everything."""
_LATE_S = 60  # by which a signal from SLURM may be late


def server_arguments(config: RunConfig) -> dict[str, Any]:
    """Options of the servers, by their names on a command line without the leading dashes."""
    return {name.replace("_", "-"): value for name, value in config.rollout.server_arguments.items()}


def job_layout(config: RunConfig) -> JobLayout:
    """Lay out trainer and servers on the nodes of a job.

    Args:
        config: configuration that has passed the rules.

    Returns:
        The layout, with the servers that the job starts.

    Raises:
        ConfigError: trainer and servers do not fit the nodes, or the servers cannot have that size.
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
    """Find out which SGLang servers take GPUs.

    Args:
        config: configuration that has passed the rules.

    Returns:
        The servers; None if no server takes a GPU.

    Raises:
        ConfigError: the job would start the servers, and `job_layout` refuses them.
    """
    rollout = config.rollout
    if rollout.engine == "embedded" or server_arguments(config).get("device") == "cpu":
        return None
    of_job = rollout.addresses_file is not None
    number = job_layout(config).servers if of_job else rollout.servers or len(rollout.addresses) or None
    return ServerRequest(
        _tensor(config),
        number,
        colocated=rollout.colocated,
        copies=_copies(config),
        on_whole_nodes=of_job,
        expert=_size(config, _EXPERT),
    )


def check_server_numbers(config: RunConfig) -> None:
    """Check the options that megacov reads itself; raises ConfigError if a size is no number, or a fraction none."""
    for name, value in server_arguments(config).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in (*_TENSOR, *_EXPERT, *_PIPELINE, *_DATA) and not (is_number and value == int(value) and value >= 1):
            raise ConfigError(
                f"rollout.server_arguments.{name} is {value!r}: give a whole number from 1 on, without quotes."
            )
        if name == _FRACTION and not (is_number and 0 < value < 1):
            raise ConfigError(
                f"rollout.server_arguments.{name} is {value!r}, a fraction of a GPU's memory: give one between 0 and 1."
            )


def servers_are_foreign(config: RunConfig) -> bool:
    """Whether neither the trainer nor its job starts the servers, so that the configuration does not know them."""
    rollout = config.rollout
    return bool(rollout.addresses) or (
        rollout.addresses_file is not None and config.cluster.nodes is None and not rollout.colocated
    )


def longest_served(config: RunConfig, sizes: ModelSizes) -> int:
    """Tokens of the longest sequence that the servers take: the model's, or those of SGLang's option context-length."""
    value = server_arguments(config).get("context-length") if config.rollout.engine == "sglang" else None
    return value if isinstance(value, int) and not isinstance(value, bool) else sizes.max_position_embeddings


def longest_of(config: RunConfig) -> int:
    """Number of tokens of the longest possible sequence, prompt included."""
    return config.data.max_prompt_length + config.rollout.max_response_length


def sets_too_long(config: RunConfig, suite: SuiteSection, sizes: ModelSizes) -> Iterator[str]:
    """Yield a sentence for each set of an evaluation whose responses may be longer than servers take."""
    served = longest_served(config, sizes)
    for each in suite.sets:
        if each.max_response_length >= served:
            yield (
                f"max_response_length of the set {each.name} of evaluation.suite is {each.max_response_length}, and "
                f"servers refuse a prompt and response of more than {served} tokens: the evaluation would fail; lower "
                "it."
            )


def too_long(config: RunConfig, sizes: ModelSizes) -> Iterator[str]:
    """Yield a sentence if sequences may be longer than servers of this configuration take."""
    longest, served = longest_of(config), longest_served(config, sizes)
    if longest > served:
        yield (
            f"data.max_prompt_length + rollout.max_response_length is {longest}, and servers refuse more than {served} "
            "tokens (max_position_embeddings of the model, or rollout.server_arguments.context-length): lower them."
        )


def leave_seconds(config: RunConfig) -> int:
    """Seconds that the ranks of a job have to save and leave. [s]"""
    return CLOSING_S + (int(config.checkpoint.grace_s) if config.checkpoint.every else 0)


def signal_lead_problem(config: RunConfig) -> str | None:
    """Why SLURM's signal before the time limit would come too late or too early; None if it does not."""
    slurm, least_s = config.slurm, leave_seconds(config) + _LATE_S
    if least_s <= slurm.signal_lead_s < slurm.time_limit_min * 60:
        return None
    return (
        f"slurm.signal_lead_s is {slurm.signal_lead_s}, checkpoint.grace_s {config.checkpoint.grace_s:g} and "
        f"slurm.time_limit_min {slurm.time_limit_min}: set it to at least {least_s} s and below the time limit."
    )


def _tensor(config: RunConfig) -> int:
    return _size(config, _TENSOR)


def _copies(config: RunConfig) -> int:
    """Number of pipeline stages times data-parallel copies of a server, each of which has GPUs of its own."""
    copies = _size(config, _PIPELINE) * _size(config, _DATA)
    if copies > 1 and config.weight_sync.traits.tensor_parallel_only:
        raise ConfigError(
            f"rollout.server_arguments asks for {copies} data-parallel copies or pipeline stages, and "
            f"weight_sync.transport is {config.weight_sync.transport}, which reaches tensor-parallel ranks only: "
            f"remove dp-size and pp-size, or set {choose_transport(lambda other: not other.tensor_parallel_only)}."
        )
    return copies


def _size(config: RunConfig, names: tuple[str, ...]) -> int:
    """The value of an option; if it is given in several spellings, the server takes the last."""
    return int([1, *(value for name, value in server_arguments(config).items() if name in names)][-1])
