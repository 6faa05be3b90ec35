"""Abilities of a rollout server, derived from its version: SGLang's contract changes between versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from megacov.config.messages import show
from megacov.errors import RolloutError

OLDEST_VERSION = "0.5.5"
SAFE_VERSION = "0.5.10"
NEWEST_TESTED_VERSION = "0.5.23"

_LARGEST_SIZE = 2**20
_UNSAFE = (
    "which unpickles whatever reaches its ZeroMQ sockets (CVE-2026-3059, CVE-2026-3060: anybody who reaches the "
    f"machine can run code on it); install {SAFE_VERSION} or newer"
)


class UnusableServerError(RolloutError):
    """The server cannot do what the run needs; a retry would not help."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Abilities of one server. The defaults describe the newest contract.

    version: SGLang version that the server reports.
    pause_takes_body: pause and resume need a JSON body, and pause has modes; older servers always abort.
    weight_sessions: tensors are accepted only between the begin and the end of an update.
    version_spans: completions report the weight version of each token; older servers report only the last version.
    flattened_buckets: many tensors may arrive as one message.
    request_seeds: the server follows a request's seed; SGLang then gives all copies of the request the same tokens.
    tensor_parallel: ranks that share the weights. [ranks]
    other_parallel: data-parallel copies times pipeline stages. [copies]
    memory_saver: the server can free its GPU memory and allocate it again.
    watchdog_s: time without a step after which the server kills itself while requests run; None if it never does. [s]
    loaders: custom weight loaders that the server was started with, as module.function.
    expert_parallel: groups of its ranks that hold different experts. [groups]
    quantization: method by which the server stores its weights; None if it does not quantise them.
    has_draft: a draft model runs beside the model.
    reorders_experts: after loading, the server may store experts in another order than the model's.
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
    watchdog_s: float | None = None
    loaders: tuple[str, ...] = ()
    expert_parallel: int = 1
    quantization: str | None = None
    has_draft: bool = False
    reorders_experts: bool = False


def read_capabilities(server_info: Mapping[str, Any], *, server: str) -> Capabilities:
    """Derive the capabilities of a server.

    Args:
        server_info: reply to /server_info.
        server: address, for error messages.

    Returns:
        Abilities of the server.

    Raises:
        UnusableServerError: the version is unreadable, or too old to talk to.
    """
    version = server_info.get("version")
    try:
        number = Version(str(version))
    except ValueError as error:  # InvalidVersion, or a number with thousands of digits
        raise UnusableServerError(
            f"{server} reports the version {show(version)}, which is not a version number."
        ) from error
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
        watchdog_s=_seconds(server_info, "watchdog_timeout"),
        loaders=_names(server_info, "custom_weight_loader"),
        expert_parallel=_size(server_info, "ep_size"),
        quantization=next(iter(_names(server_info, "quantization")), None),
        has_draft=bool(server_info.get("speculative_algorithm")),
        # On GPUs some runners do, and auto may choose one of these.
        reorders_experts=server_info.get("device") not in (None, "cpu")
        and server_info.get("moe_runner_backend") != "triton",
    )


def _size(server_info: Mapping[str, Any], name: str) -> int:
    size = server_info.get(name, 1)
    return size if type(size) is int and 1 <= size <= _LARGEST_SIZE else 1


def _names(server_info: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = server_info.get(name)
    several = found if isinstance(found, list) else [found]
    return tuple(each for each in several if isinstance(each, str))


def _seconds(server_info: Mapping[str, Any], name: str) -> float | None:
    seconds = server_info.get(name)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return None
    return float(seconds) if 0 < seconds < math.inf else None


def refuse_unsafe(version: str, *, server: str) -> None:
    """Refuse a version with known security holes, on servers that the trainer starts.

    Args:
        version: SGLang version that `read_capabilities` has accepted.
        server: address, for the error message.

    Raises:
        UnusableServerError: the version is unsafe.
    """
    if Version(version) < Version(SAFE_VERSION):
        raise UnusableServerError(f"{server} runs SGLang {version}, {_UNSAFE}.")


def version_warning(version: str, *, server: str) -> str | None:
    """Warn about a version that is used nevertheless.

    Args:
        version: SGLang version that `read_capabilities` has accepted.
        server: address, for the warning.

    Returns:
        A sentence, or None.
    """
    if Version(version) < Version(SAFE_VERSION):
        return f"{server} runs SGLang {version}, {_UNSAFE}."
    # Compare releases only, so that development versions and post-releases of the newest give no warning.
    if Version(version).release > Version(NEWEST_TESTED_VERSION).release:
        return f"{server} runs SGLang {version}; megacov is tested up to {NEWEST_TESTED_VERSION}."
    return None
