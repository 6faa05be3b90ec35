"""Settings of checkpoints: how often they are saved, how many are kept, and how many saves may fail."""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt

from megacov.config.section import Section


class CheckpointSection(Section):
    """Checkpoints, from which `megacov resume` continues."""

    every: StrictInt = Field(10, ge=0)
    """Steps between two saves; a run also saves at its end and when it is asked to leave. 0 never saves. [steps]"""
    keep_last: StrictInt = Field(2, ge=1)
    """Number of newest checkpoints kept on disk. [checkpoints]"""
    keep_every: StrictInt = Field(0, ge=0)
    """Checkpoints of steps divisible by this are kept for good; 0 keeps none for good. [steps]"""
    background: bool = True
    """Write while training continues; training waits only for the copy to main memory."""
    deadline_s: StrictFloat = Field(1800.0, gt=0)
    """A save that takes longer has failed. [s]"""
    max_failures: StrictInt = Field(2, ge=0)
    """Saves in a row that may fail, with a warning each, before the run stops. [saves]"""
    grace_s: StrictFloat = Field(120.0, gt=0)
    """After SIGTERM or SIGUSR1, time in which the run must finish its update, save and leave. [s]"""
