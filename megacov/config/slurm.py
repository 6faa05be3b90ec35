"""Settings of the SLURM job that `megacov launch` submits. Settings of a site belong into a file of slurm/sites."""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt

from megacov.config.section import Section


class SlurmSection(Section):
    """The job; training does not read this section."""

    partition: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Partition of the job; null for that of the site, or otherwise the cluster's default."""
    time_limit_min: StrictInt = Field(240, ge=2)
    """Time limit of the job; the run continues in a requeued one. [minutes]"""
    signal_lead_s: StrictInt = Field(300, ge=60)
    """Time before the limit at which the run is asked to save and leave. [s]"""
    max_requeues: StrictInt = Field(5, ge=0)
    """Most requeues in a row without a new checkpoint. [requeues]"""
    preflight: bool = True
    """Check the nodes at each start, and requeue the job without the bad ones."""
    least_all_reduce: StrictFloat | None = Field(None, ge=0)
    """Bandwidth of a link that an all-reduce over all ranks must reach in the preflight; null only measures it, and
    only on GPUs. [GB/s]"""
    heterogeneous: bool = False
    """Make trainer and rollout servers the components of a heterogeneous job, instead of nodes of one plain job."""
    server_partition: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Partition of the rollout servers in a heterogeneous job; null for that of the trainer."""
