"""Settings of the machines that a run is meant for, with which `megacov check` plans.

Training reads the memory of a GPU for `selection.method: auto`, and never plans with more than the GPU has.
"""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt

from megacov.config.section import Section


class ClusterSection(Section):
    """The machines: by default nodes of eight H100."""

    nodes: StrictInt | None = Field(None, ge=1)
    """Nodes of the job, for trainer and rollout servers together; null for as many as the trainer needs. [nodes]"""
    gpus_per_node: StrictInt = Field(8, ge=1)
    """GPUs of a node. [GPUs]"""
    gpu_memory_gib: StrictFloat = Field(80.0, gt=0)
    """Memory of a GPU. [GiB]"""
    gpu_reserve_gib: StrictFloat = Field(4.0, ge=0)
    """Part of that memory left to CUDA, libraries and fragmentation. [GiB]"""
    node_memory_gib: StrictFloat = Field(1024.0, gt=0)
    """Main memory of a node, to which checkpoints are copied before they are written. [GiB]"""
