"""From the name of a transport to the transport."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from megacov.config import RunConfig
from megacov.config.transports import TRANSPORTS
from megacov.rollout import RolloutClient
from megacov.weight_sync.base import RunOnLoop, WeightTransport


def transport_class(name: str) -> type[WeightTransport]:
    """The class of one of `TRANSPORTS`."""
    module, _, attribute = TRANSPORTS[name].implementation.partition(":")
    found = getattr(import_module(module), attribute)
    assert issubclass(found, WeightTransport)
    return found


def make_transport(
    config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
) -> WeightTransport:
    """Make the transport of a run; `WeightTransport.from_config` describes the arguments."""
    return transport_class(config.weight_sync.transport).from_config(config, folder, clients, run=run)
