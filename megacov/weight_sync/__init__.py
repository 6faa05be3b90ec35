"""Bring the weights of a training step to the rollout servers, whole or not at all."""

from __future__ import annotations

from megacov.weight_sync.base import PushTimes, RunOnLoop, ServersFailedError, WeightTransport
from megacov.weight_sync.broadcast import BroadcastTransport
from megacov.weight_sync.disk import DiskTransport
from megacov.weight_sync.ipc_shards import IpcShardsTransport
from megacov.weight_sync.meeting import Meeting
from megacov.weight_sync.reach import why_out_of_reach
from megacov.weight_sync.registry import make_transport
from megacov.weight_sync.reshard import ReshardTransport
from megacov.weight_sync.servers import on_every_server
from megacov.weight_sync.session import SessionSettings, SessionTransport
from megacov.weight_sync.shard_sender import OwnShards, ShardSender
from megacov.weight_sync.snapshot import write_snapshot
from megacov.weight_sync.tensors import TensorTransport

__all__ = [
    "BroadcastTransport",
    "DiskTransport",
    "IpcShardsTransport",
    "Meeting",
    "OwnShards",
    "PushTimes",
    "ReshardTransport",
    "RunOnLoop",
    "ServersFailedError",
    "SessionSettings",
    "SessionTransport",
    "ShardSender",
    "TensorTransport",
    "WeightTransport",
    "make_transport",
    "on_every_server",
    "why_out_of_reach",
    "write_snapshot",
]
