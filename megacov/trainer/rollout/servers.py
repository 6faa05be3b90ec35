"""The rollout servers of a run: those that the trainer starts, and all of them as a fleet."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from megacov.config import RunConfig
from megacov.config.addresses import is_loopback
from megacov.embedded_server.startup import listen
from megacov.errors import RolloutError
from megacov.launch.loader import with_loader
from megacov.rollout import (
    EMBEDDED_HEALTH_TIMEOUT_S,
    HEALTH_TIMEOUT_S,
    AddressFile,
    EmbeddedServer,
    Fleet,
    Member,
    Membership,
    RolloutClient,
    ServerKeys,
    ServerProcess,
    SglangServer,
    make_keys,
    read_keys,
)

_SEEDS_PER_RUN = 1_009  # more than there are servers, so that runs with neighbouring seeds share no server seed

_CONTROL_CONNECTIONS = 8
_OPEN_FILES = 65_536  # the limit that SGLang sets for itself
_OTHER_FILES = 256


def allow_open_files(config: RunConfig) -> None:
    """Allow this process one connection per request; refused connections would look like lost servers.

    A hard limit that is too low is reported on stdout.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        soft = min(hard, _OPEN_FILES) if hard != resource.RLIM_INFINITY else _OPEN_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    needed = _most_requests(config) + _OTHER_FILES
    if soft < needed:
        print(
            f"megacov: up to {_most_requests(config)} requests may be under way, and this process may open {soft} "
            f"files only, so that some of them will fail: raise its hard limit (ulimit -Hn) to {needed}, or lower "
            "rollout.max_concurrency.",
            flush=True,
        )


def find_keys(config: RunConfig) -> ServerKeys:
    """Make keys for servers that the trainer starts, or read those of other servers.

    Args:
        config: the run's configuration.

    Returns:
        The keys; none where no file names any.

    Raises:
        ConfigError: the keys file is unusable.
    """
    if config.rollout.keys_file is not None:
        return read_keys(config.rollout.keys_file)
    rollout = config.rollout
    is_open = rollout.engine == "embedded" and not is_loopback(rollout.host)
    return make_keys() if rollout.servers or is_open else ServerKeys()


def _check_servers(config: RunConfig) -> None:
    """Check command, address and port of servers, and the file that lists them; raises RolloutError. Starts nothing."""
    rollout = config.rollout
    if rollout.addresses_file is not None:
        AddressFile(rollout.addresses_file).read()
    if rollout.servers and shutil.which(rollout.server_command[0]) is None:
        raise RolloutError(
            f"rollout.server_command begins with {rollout.server_command[0]!r}, and there is no such program: correct "
            "it, or put its folder on PATH."
        )
    if rollout.engine == "embedded":
        listen(rollout.host, rollout.port).close()
    elif rollout.servers:
        listen(rollout.host, 0).close()


def make_servers(config: RunConfig, folder: Path, keys: ServerKeys) -> list[ServerProcess]:
    """Make the servers that the trainer starts, without starting them.

    Args:
        config: the run's configuration.
        folder: run folder, for logs.
        keys: keys of the servers.

    Returns:
        The servers; none where addresses of running servers are given.

    Raises:
        RolloutError: their command does not exist, they cannot listen at their address, or the file of addresses is
            unusable.
    """
    _check_servers(config)
    if config.rollout.engine == "embedded":
        return [_embedded(config, folder, keys)]
    return [_sglang(config, folder, keys, number) for number in range(config.rollout.servers)]


def make_fleet(
    config: RunConfig,
    servers: Sequence[ServerProcess],
    keys: ServerKeys,
    *,
    vocab_size: int,
    bring_up_to_date: Callable[[RolloutClient], Awaitable[None]] | None,
    check: Callable[[RolloutClient], None] | None = None,
) -> Fleet:
    """Make the fleet of all servers.

    Args:
        config: the run's configuration.
        servers: servers from `make_servers`, started.
        keys: keys of the servers.
        vocab_size: rows of the model's embedding.
        bring_up_to_date: gives a lost server the current weights; None leaves that to the next push.
        check: refuses an unusable server.

    Returns:
        The fleet.

    Raises:
        RolloutError: the address file is unusable.
    """
    rollout = config.rollout

    def make_client(address: str) -> RolloutClient:
        return RolloutClient(
            address,
            vocab_size=vocab_size,
            request_timeout_s=rollout.request_timeout_s,
            max_retries=rollout.max_retries,
            # Leave room for control calls and health checks.
            max_connections=_most_requests(config) + _CONTROL_CONNECTIONS,
            api_key=keys.api,
            admin_key=keys.admin,
        )

    file = None if rollout.addresses_file is None else AddressFile(rollout.addresses_file)
    addresses = rollout.addresses if file is None else file.read()
    members = [Member(make_client(server.address), server) for server in servers]
    return Fleet(
        Membership(
            members=members or [Member(make_client(address)) for address in addresses],
            address_file=file,
            make_client=make_client,
            bring_up_to_date=bring_up_to_date,
            check=check,
            max_restarts=rollout.max_restarts,
            start_timeout_s=rollout.start_timeout_s,
            health_timeout_s=EMBEDDED_HEALTH_TIMEOUT_S if rollout.engine == "embedded" else HEALTH_TIMEOUT_S,
        )
    )


def _most_requests(config: RunConfig) -> int:
    rollout = config.rollout
    # Partial rollouts continue each response with a request of its own.
    of_rollout = rollout.max_concurrency * (max(config.group_sizes) if rollout.is_partial else 1)
    return of_rollout + (0 if config.evaluation.suite is None else config.evaluation.max_concurrency)


def _embedded(config: RunConfig, folder: Path, keys: ServerKeys) -> EmbeddedServer:
    rollout = config.rollout
    return EmbeddedServer(
        config.model.path,
        log_path=folder / "logs" / "server.log",
        host=rollout.host,
        port=rollout.port,
        dtype=config.model.dtype,
        num_threads=rollout.num_threads,
        random_seed=config.run.seed,
        max_running_requests=rollout.max_concurrency * max(config.group_sizes),
        deterministic=config.run.deterministic,
        keys=None if keys.api is None else keys,
        start_timeout_s=rollout.start_timeout_s,
    )


def _sglang(config: RunConfig, folder: Path, keys: ServerKeys, number: int) -> SglangServer:
    rollout = config.rollout
    loader = config.weight_sync.traits.loader
    arguments, environment = with_loader(rollout.server_arguments, rollout.server_environment, loader)
    if rollout.colocated:
        arguments["enable-memory-saver"] = True
    if rollout.server_devices:
        environment["CUDA_VISIBLE_DEVICES"] = rollout.server_devices[number]
    return SglangServer(
        config.model.path.resolve(),
        number=number,
        keys=keys,
        log_path=folder / "logs" / f"server_{number}.log",
        command=rollout.server_command,
        arguments=arguments,
        environment=environment,
        host=rollout.host,
        dtype=config.model.dtype,
        # With equal seeds, all servers would draw equal tokens.
        random_seed=(config.run.seed * _SEEDS_PER_RUN + number) % 2**31,
        start_timeout_s=rollout.start_timeout_s,
    )
