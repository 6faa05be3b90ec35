"""Rules about rollout servers, collected by `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megacov.config.schema import RunConfig
from megacov.config.secret_values import is_secret, is_secret_value
from megacov.config.transports import choose_transport

_MOST_STAGING = 2 * 1024**3
_GIVING_UP_S = 120.0  # time to leave a process group and probe each server


def engine_has_its_servers(config: RunConfig) -> str | None:
    """SGLang servers have addresses or are started by the trainer; the embedded server is always started by it."""
    rollout, named = config.rollout, []
    if rollout.addresses:
        named.append(f"rollout.addresses names {len(rollout.addresses)} servers")
    if rollout.addresses_file is not None:
        named.append(f"rollout.addresses_file is {rollout.addresses_file}")
    if rollout.servers:
        named.append(f"rollout.servers is {rollout.servers}")
    if rollout.engine == "embedded" and named:
        return (
            f"rollout.engine is embedded and {named[0]}, which it would not use: remove it, or set "
            "rollout.engine=sglang."
        )
    if rollout.engine == "sglang" and not named:
        return (
            "rollout.engine is sglang, rollout.addresses is empty and rollout.servers is 0: list the servers' URLs, as "
            "in rollout.addresses=[http://127.0.0.1:30000], or have some started, as in rollout.servers=1."
        )
    if len(named) > 1:
        return f"{' and '.join(named)}: name servers that already run in one place or have some started, not both."
    return None


def keys_are_of_servers_that_already_run(config: RunConfig) -> str | None:
    """The trainer makes the keys of servers that it starts."""
    rollout = config.rollout
    if rollout.keys_file is None or rollout.addresses or rollout.addresses_file:
        return None
    return (
        f"rollout.keys_file is {rollout.keys_file} and neither rollout.addresses nor rollout.addresses_file names a "
        "server that already runs: remove it."
    )


def every_server_has_its_devices(config: RunConfig) -> str | None:
    """Either every server has an entry of devices, or none has."""
    devices, servers = config.rollout.server_devices, config.rollout.servers
    if not devices or len(devices) == servers:
        return None
    return (
        f"rollout.server_devices has {len(devices)} entries and rollout.servers is {servers}: give each server that "
        "the trainer starts its devices, or none of them."
    )


def servers_are_given_up_before_ranks(config: RunConfig) -> str | None:
    """Ranks wait in a collective while rank 0 finds the server that does not take its weights."""
    sync, ranks_s = config.weight_sync, config.parallel.timeout_s
    if not sync.traits.in_buckets or sync.timeout_s + _GIVING_UP_S <= ranks_s:
        return None
    return (
        f"weight_sync.timeout_s is {sync.timeout_s:g} and parallel.timeout_s is {ranks_s:g}: ranks would fail before a "
        f"server that hangs is given up; keep parallel.timeout_s at least {_GIVING_UP_S:g} s longer."
    )


def staging_is_bounded(config: RunConfig) -> str | None:
    """Servers leave little memory free, and a rank of one stages two buckets."""
    sync = config.weight_sync
    if sync.traits.loader is None or 2 * sync.bucket_bytes <= _MOST_STAGING:
        return None
    return (
        f"weight_sync.transport is {sync.transport} and weight_sync.bucket_bytes is {sync.bucket_bytes}, of which each "
        f"rank of trainer and servers holds two: set at most {_MOST_STAGING // 2}."
    )


def shards_for_requests_are_on_one_machine(config: RunConfig) -> str | None:
    """A server's GPU opens memory of its own machine alone."""
    sync, ranks, each = config.weight_sync, config.world_size, config.cluster.gpus_per_node
    if not sync.traits.one_machine or ranks <= each:
        return None
    return (
        f"weight_sync.transport is {sync.transport}, whose ranks of the trainer are all on one machine, the run has "
        f"{ranks} ranks, and cluster.gpus_per_node is {each}: set "
        f"{choose_transport(lambda other: other.in_buckets and not other.one_machine)}."
    )


def secrets_stay_out_of_files(config: RunConfig) -> str | None:
    """The configuration is copied into the run's folder, checkpoints, TensorBoard and job scripts."""
    rollout = config.rollout
    for setting in ("server_environment", "server_arguments"):
        for name, value in getattr(rollout, setting).items():
            if isinstance(value, str) and is_secret(name, value):
                return _is_secret(f"rollout.{setting}.{name}")
    found = next((path for path, value in _texts(config.model_dump(mode="json"), "") if is_secret_value(value)), None)
    return None if found is None else _is_secret(found)


def _is_secret(path: str) -> str:
    return (
        f"{path} looks like a secret, and RUN/config.yaml, checkpoints, TensorBoard and job scripts would hold it: "
        "remove it, and export it in the shell that starts the run, whose environment ranks and servers inherit."
    )


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text in a configuration, with its path."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, path)


def colocated_servers_take_turns_with_the_trainer(config: RunConfig) -> str | None:
    """Servers on the trainer's GPUs sample while the trainer waits, and cannot get their weights by NCCL."""
    rollout, sync = config.rollout, config.weight_sync
    if not rollout.colocated:
        return None
    if rollout.engine == "embedded":
        return (
            "rollout.colocated is true and rollout.engine is embedded, which holds no GPU memory: set "
            "rollout.colocated=false or rollout.engine=sglang."
        )
    if rollout.max_staleness > 0:
        return (
            f"rollout.colocated is true and rollout.max_staleness is {rollout.max_staleness}: servers that sample "
            "while the trainer computes cannot give their memory to it; set one of them to its default."
        )
    if sync.traits.needs_gpu_per_rank:
        return (
            f"rollout.colocated is true and weight_sync.transport is {sync.transport}: NCCL takes no two ranks on one "
            f"GPU; set {choose_transport(lambda other: not other.needs_gpu_per_rank)}."
        )
    return None


def the_embedded_server_reads_weights_from_disk(config: RunConfig) -> str | None:
    """The embedded server supports only some transports."""
    if config.rollout.engine != "embedded" or config.weight_sync.traits.embedded_server:
        return None
    return (
        f"weight_sync.transport is {config.weight_sync.transport} and rollout.engine is embedded, whose server does "
        f"not support it: set {choose_transport(lambda other: other.embedded_server)} or rollout.engine=sglang."
    )
