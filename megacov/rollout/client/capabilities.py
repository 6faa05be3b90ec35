"""What a rollout server can do, from the version it reports: SGLang's contract has changed with its versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from megacov.errors import RolloutError

OLDEST_VERSION = "0.5.5"
SAFE_VERSION = "0.5.10"
NEWEST_TESTED_VERSION = "0.5.23"

_UNSAFE = (
    "which unpickles whatever reaches its ZeroMQ sockets (CVE-2026-3059, CVE-2026-3060: code of anybody who reaches "
    f"the machine is run); install {SAFE_VERSION} or newer"
)


class UnusableServerError(RolloutError):
    """The server cannot do what the run asks of it, however often it is tried."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How to talk to one server. The defaults are those of the newest contract.

    version: of SGLang, as the server reports it.
    pause_takes_body: pause and resume want a JSON body, and pause has modes; before, it always aborts.
    weight_sessions: tensors arrive between a begin and an end of the update only.
    version_spans: completions tell which of their tokens came from which weights; before, only the version at the end.
    flattened_buckets: many tensors may arrive as one.
    request_seeds: a seed in a request has an effect; SGLang then gives all copies of the request the same tokens.
    tensor_parallel: ranks that hold parts of the weights. [ranks]
    other_parallel: copies or pipeline stages of these. [copies]
    memory_saver: memory can be given back and taken again.
    """

    version: str = NEWEST_TESTED_VERSION
    pause_takes_body: bool = True
    weight_sessions: bool = True
    version_spans: bool = True
    flattened_buckets: bool = True
    request_seeds: bool = True
    tensor_parallel: int = 1
    other_parallel: int = 1
    memory_saver: bool = False


def read_capabilities(server_info: Mapping[str, Any], *, server: str) -> Capabilities:
    """Derive them.

    Args:
        server_info: what the server says of itself.
        server: its address, for errors.

    Returns:
        What it can do.

    Raises:
        UnusableServerError: a version that cannot be read, or that is too old to talk to.
    """
    version = server_info.get("version")
    try:
        number = Version(str(version))
    except InvalidVersion as error:
        raise UnusableServerError(f"{server} reports the version {version!r}, which is none of SGLang's.") from error
    if number < Version(OLDEST_VERSION):
        raise UnusableServerError(f"{server} runs SGLang {version}; install {OLDEST_VERSION} or newer.")
    return Capabilities(
        version=str(version),
        pause_takes_body=number >= Version("0.5.6"),
        weight_sessions=number >= Version("0.5.21"),
        version_spans=number >= Version("0.5.19"),
        flattened_buckets=number >= Version("0.5.6"),
        request_seeds=bool(server_info.get("enable_deterministic_inference", False)),
        tensor_parallel=_size(server_info, "tp_size"),
        other_parallel=_size(server_info, "pp_size") * _size(server_info, "dp_size"),
        memory_saver=bool(server_info.get("enable_memory_saver", False)),
    )


def _size(server_info: Mapping[str, Any], name: str) -> int:
    size = server_info.get(name, 1)
    return size if isinstance(size, int) else 1


def refuse_unsafe(version: str, *, server: str) -> None:
    """Refuse a version with known holes, for servers that are started here.

    Args:
        version: of SGLang; one that `read_capabilities` has read.
        server: its address.

    Raises:
        UnusableServerError: if it is unsafe.
    """
    if Version(version) < Version(SAFE_VERSION):
        raise UnusableServerError(f"{server} runs SGLang {version}, {_UNSAFE}.")


def version_warning(version: str, *, server: str) -> str | None:
    """What a user should know about a version that is used all the same.

    Args:
        version: of SGLang; one that `read_capabilities` has read.
        server: its address.

    Returns:
        A sentence, or None.
    """
    if Version(version) < Version(SAFE_VERSION):
        return f"{server} runs SGLang {version}, {_UNSAFE}."
    # A development version or a post-release of the newest is told by its release alone.
    if Version(version).release > Version(NEWEST_TESTED_VERSION).release:
        return f"{server} runs SGLang {version}; megacov is tested up to {NEWEST_TESTED_VERSION}."
    return None
