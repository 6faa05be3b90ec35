"""The transport of weights that a run asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from megacov.config import RunConfig
from megacov.rollout import RolloutClient
from megacov.weight_sync import (
    BroadcastTransport,
    DiskTransport,
    Meeting,
    RunOnLoop,
    SessionSettings,
    TensorTransport,
)


def make_transport(
    config: RunConfig, folder: Path, clients: Sequence[RolloutClient], *, run: RunOnLoop
) -> DiskTransport | BroadcastTransport | TensorTransport:
    """Set it up; no server is asked yet.

    Args:
        config: of the run.
        folder: of the run.
        clients: of the servers; each push goes to those that are in it then.
        run: runs what the clients do.

    Returns:
        The transport.
    """
    sync = config.weight_sync
    if sync.transport == "disk":
        return DiskTransport(
            clients,
            run=run,
            source_model=config.model.path,
            directory=sync.directory or folder / "weights",
            keep=sync.keep,
            pause_mode=sync.pause_mode,
            verify=sync.verify,
        )
    settings = SessionSettings(
        bucket_bytes=sync.bucket_bytes, timeout_s=sync.timeout_s, pause_mode=sync.pause_mode, verify=sync.verify
    )
    if sync.transport == "ipc":
        return TensorTransport(clients, run=run, settings=settings)
    if dist.get_backend() == "nccl":
        meeting = Meeting("nccl", sync.host, torch.device("cuda", torch.cuda.current_device()))
    else:
        meeting = Meeting("gloo", sync.host, torch.device("cpu"))
    return BroadcastTransport(clients, run=run, settings=settings, meeting=meeting)
