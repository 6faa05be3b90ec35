"""The rollout servers of an evaluation: the embedded one, which it starts, or running ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megacov.errors import RolloutError
from megacov.rollout import (
    EMBEDDED_HEALTH_TIMEOUT_S,
    HEALTH_TIMEOUT_S,
    EmbeddedServer,
    Fleet,
    Member,
    Membership,
    RolloutClient,
    ServerKeys,
    version_warning,
)

_CONTROL_CONNECTIONS = 8
_MAX_RESTARTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the servers are reached, or started.

    addresses: URLs of running servers; empty starts the embedded server.
    keys: keys of running servers.
    dtype, num_threads, deterministic: of the embedded server; deterministic runs one request at a time, so that equal
        seeds give equal bits.
    max_concurrency: largest number of requests in flight.
    request_timeout_s: deadline of one request, its wait in the server's queue included. [s]
    start_timeout_s: deadline for a server to answer. [s]
    """

    addresses: tuple[str, ...] = ()
    keys: ServerKeys = field(default_factory=ServerKeys)
    dtype: str = "float32"
    num_threads: int = 1
    deterministic: bool = True
    max_concurrency: int = 4
    request_timeout_s: float = 3600.0
    start_timeout_s: float = 300.0

    @property
    def follows_seeds(self) -> bool:
        """Whether a request's seed decides its tokens. SGLang would give all copies of a request the same ones."""
        return not self.addresses

    def identity(self) -> dict[str, object]:
        """Those of the settings that decide the results."""
        if self.addresses:
            return {"engine": "running servers"}
        return {
            "engine": "embedded",
            "dtype": self.dtype,
            "num_threads": self.num_threads,
            "deterministic": self.deterministic,
        }


def embedded_server(
    model: Path, settings: ServerSettings, *, seed: int, most_samples: int, log_path: Path
) -> EmbeddedServer:
    """The embedded server for a model, not started.

    Args:
        model: model folder.
        settings: settings of the servers.
        seed: of tokens whose request has no seed.
        most_samples: most responses that a request asks for.
        log_path: log file of the server.

    Returns:
        The server.
    """
    return EmbeddedServer(
        model,
        log_path=log_path,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        random_seed=seed,
        max_running_requests=settings.max_concurrency * most_samples,
        deterministic=settings.deterministic,
        start_timeout_s=settings.start_timeout_s,
    )


def make_fleet(server: EmbeddedServer | None, settings: ServerSettings, *, vocab_size: int) -> Fleet:
    """Make the fleet; `wait_ready` connects it.

    Args:
        server: the embedded server, started; None for running servers.
        settings: settings of the servers.
        vocab_size: rows of the model's embedding.

    Returns:
        The fleet. A server that is lost and comes back serves at once, since it holds the weights of its folder.
    """

    def make_client(address: str) -> RolloutClient:
        return RolloutClient(
            address,
            vocab_size=vocab_size,
            request_timeout_s=settings.request_timeout_s,
            max_connections=settings.max_concurrency + _CONTROL_CONNECTIONS,
            api_key=settings.keys.api,
            admin_key=settings.keys.admin,
        )

    if server is not None:
        members = [Member(make_client(server.address), server)]
    else:
        members = [Member(make_client(address)) for address in settings.addresses]
    return Fleet(
        Membership(
            members=members,
            make_client=make_client,
            bring_up_to_date=_is_up_to_date,
            check=_warn_of_version,
            max_restarts=_MAX_RESTARTS,
            start_timeout_s=settings.start_timeout_s,
            health_timeout_s=HEALTH_TIMEOUT_S if server is None else EMBEDDED_HEALTH_TIMEOUT_S,
        )
    )


async def weight_version(clients: Sequence[RolloutClient]) -> str:
    """Ask all servers for the version of their weights; raises RolloutError if they differ."""
    versions = {client.address: str((await client.model_info()).get("weight_version", "default")) for client in clients}
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{address} has {version}" for address, version in versions.items())
        raise RolloutError(f"The servers hold different weights ({shown}): give servers of one model.")
    return next(iter(versions.values()))


async def _is_up_to_date(client: RolloutClient) -> None:
    """Nothing is pushed to a server of an evaluation."""
    del client


def _warn_of_version(client: RolloutClient) -> None:
    warning = version_warning(client.capabilities.version, server=client.address)
    if warning is not None:
        print(f"megacov: {warning}", flush=True)
