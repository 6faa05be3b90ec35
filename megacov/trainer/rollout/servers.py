"""The rollout servers of a run: those it starts for itself, and all of them as a fleet."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from megacov.config import RunConfig
from megacov.rollout import (
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

_SEEDS_PER_RUN = 1_009  # more than there are servers, so that runs of neighbouring seeds sample apart

_CONTROL_CONNECTIONS = 8
_OPEN_FILES = 65_536  # as many as SGLang allows itself
_OTHER_FILES = 256


def allow_open_files(config: RunConfig) -> None:
    """Let this process have a connection for each request under way: what it lacks would look like lost servers.

    Args:
        config: of the run.
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
    """Keys of the servers.

    Args:
        config: of the run.

    Returns:
        Fresh ones for servers that are to be started, those of the file for others.

    Raises:
        ConfigError: the file cannot be used.
    """
    if config.rollout.keys_file is not None:
        return read_keys(config.rollout.keys_file)
    return make_keys() if config.rollout.servers else ServerKeys()


def make_servers(config: RunConfig, folder: Path, keys: ServerKeys) -> list[ServerProcess]:
    """What is to be started; nothing is started here.

    Args:
        config: of the run.
        folder: of the run.
        keys: of the run.

    Returns:
        No server where the addresses of running ones are given.
    """
    if config.rollout.engine == "embedded":
        return [_embedded(config, folder)]
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
    """All servers.

    Args:
        config: of the run.
        servers: what `make_servers` made.
        keys: of the run.
        vocab_size: rows of the model's embedding.
        bring_up_to_date: gives a server that was lost the current weights; None leaves that to the next push.
        check: refuses a server that cannot be used.

    Returns:
        The fleet.

    Raises:
        RolloutError: the file of addresses cannot be used.
    """
    rollout = config.rollout

    def make_client(address: str) -> RolloutClient:
        return RolloutClient(
            address,
            vocab_size=vocab_size,
            request_timeout_s=rollout.request_timeout_s,
            max_retries=rollout.max_retries,
            # Control and signs of health find a place as well.
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
        )
    )


def _most_requests(config: RunConfig) -> int:
    rollout = config.rollout
    # What partial rollouts go on with is one request a response.
    return rollout.max_concurrency * (rollout.samples_per_prompt if rollout.is_partial else 1)


def _embedded(config: RunConfig, folder: Path) -> EmbeddedServer:
    rollout = config.rollout
    return EmbeddedServer(
        config.model.path,
        log_path=folder / "logs" / "server.log",
        host=rollout.host,
        port=rollout.port,
        dtype=config.model.dtype,
        num_threads=rollout.num_threads,
        random_seed=config.run.seed,
        max_running_requests=rollout.max_concurrency * rollout.samples_per_prompt,
        deterministic=config.run.deterministic,
        start_timeout_s=rollout.start_timeout_s,
    )


def _sglang(config: RunConfig, folder: Path, keys: ServerKeys, number: int) -> SglangServer:
    rollout = config.rollout
    environment, arguments = dict(rollout.server_environment), dict(rollout.server_arguments)
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
        # Equal seeds would draw equal tokens on all servers.
        random_seed=(config.run.seed * _SEEDS_PER_RUN + number) % 2**31,
        start_timeout_s=rollout.start_timeout_s,
    )
