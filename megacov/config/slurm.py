"""Settings of the SLURM job that `megacov launch` submits. What belongs to a site stands in a file of slurm/sites."""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt

from megacov.config.section import Section


class SlurmSection(Section):
    """The job; training does not read it."""

    partition: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Partition of the job; null for the site's, or else the cluster's default."""
    time_limit_min: StrictInt = Field(240, ge=2)
    """Time limit of the job; the run goes on in a requeued one. [minutes]"""
    signal_lead_s: StrictInt = Field(300, ge=60)
    """So long before the time limit the run is asked to save and leave. [s]"""
    max_requeues: StrictInt = Field(5, ge=0)
    """Times in a row that a job is requeued although it has made no new checkpoint. [requeues]"""
    preflight: bool = True
    """Nodes are checked at each start; the job is requeued without those that are bad."""
    least_all_reduce: StrictFloat | None = Field(None, ge=0)
    """Bandwidth of a link that an all-reduce over all ranks must reach in the preflight; null measures it on GPUs and
    asks for none. [GB/s]"""
    heterogeneous: bool = False
    """Trainer and rollout servers are components of a heterogeneous job, instead of nodes of one."""
    server_partition: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Of a heterogeneous job: partition of the rollout servers; null for that of the trainer."""
