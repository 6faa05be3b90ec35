"""Bring the weights of a training step to the rollout servers, whole or not at all."""

from __future__ import annotations

from megacov.weight_sync.base import PushTimes, WeightClient, WeightTransport
from megacov.weight_sync.disk import DiskTransport
from megacov.weight_sync.snapshot import write_snapshot

__all__ = ["DiskTransport", "PushTimes", "WeightClient", "WeightTransport", "write_snapshot"]
