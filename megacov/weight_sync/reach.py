"""Whether a transport reaches a rollout server."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from megacov.config.addresses import is_loopback
from megacov.config.transports import TransportTraits, choose_transport
from megacov.config.weight_sync import WeightSyncSection
from megacov.rollout import Capabilities


def why_out_of_reach(sync: WeightSyncSection, capabilities: Capabilities, address: str) -> str | None:
    """Why weights cannot come to a server.

    Args:
        sync: settings of the transport.
        capabilities: what the server can do.
        address: URL of the server.

    Returns:
        A sentence, or None if they can.
    """
    traits, is_transport = sync.traits, f"weight_sync.transport is {sync.transport}"
    if traits.tensor_parallel_only and capabilities.other_parallel > 1:
        return (
            f"{address} has {capabilities.other_parallel} data-parallel copies or pipeline stages, and {is_transport}, "
            "which reaches tensor-parallel ranks only: start one server for each copy, or set "
            f"{choose_transport(lambda other: not other.tensor_parallel_only)}."
        )
    if traits.loopback_only and not is_on_loopback(address):
        return not_on_loopback(sync.transport, address)
    if traits.needs_flattened_buckets and not capabilities.flattened_buckets:
        is_local = is_on_loopback(address)
        others = choose_transport(
            lambda other: not other.needs_flattened_buckets and (is_local or not other.loopback_only)
        )
        return (
            f"{is_transport} and {address} runs SGLang {capabilities.version}, which takes tensors only one by one: "
            f"install 0.5.6 or newer, or set {others}."
        )
    if traits.loader is not None and (why := _why_not_by_loader(traits, capabilities)):
        others = choose_transport(lambda other: other.in_buckets and other.loopback_only == traits.loopback_only)
        return f"{is_transport} and {address} {why}, or set {others}."
    host = urlsplit(address).hostname or ""
    if traits.servers_call_back and is_loopback(sync.host) and not _is_on_this_machine(host):
        return (
            f"{is_transport}, weight_sync.host is {sync.host}, and {address} is on another machine, which would look "
            "for the trainer on itself: set weight_sync.host to the private address of rank 0's machine."
        )
    return None


def _why_not_by_loader(traits: TransportTraits, capabilities: Capabilities) -> str | None:
    """What a server is that cannot take shards, and what to start instead."""
    if traits.loader not in capabilities.loaders:
        return (
            f"was started without --custom-weight-loader {traits.loader}: start it with that option and the folder "
            "megacov/weight_receiver on its PYTHONPATH"
        )
    if traits.tried_versions is not None and capabilities.version not in traits.tried_versions:
        tried = " and ".join(traits.tried_versions)
        return f"runs SGLang {capabilities.version}, where it was never tried: install {tried}"
    if capabilities.quantization is not None:
        return (
            f"stores its weights by {capabilities.quantization}, whose tensors are not the model's: start it without "
            "--quantization"
        )
    if capabilities.has_draft:
        return "runs a draft model, which would get no weights: start it without speculative decoding"
    return None


def is_on_loopback(address: str) -> bool:
    """Whether a URL has a loopback address of this machine."""
    return is_loopback(urlsplit(address).hostname or "")


def not_on_loopback(transport: str, address: str) -> str:
    """The sentence about a server that must be on the loopback and is not."""
    return (
        f"weight_sync.transport is {transport} and {address} is not on the loopback of this machine: start the servers "
        f"on rollout.host=127.0.0.1, or set {choose_transport(lambda other: not other.loopback_only)}."
    )


def _is_on_this_machine(host: str) -> bool:
    """Whether a socket can be bound to the host; nothing is sent."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True
