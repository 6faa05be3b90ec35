"""Settings of checkpoints: how often, how many are kept, and what may go wrong before the run stops."""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt

from megacov.config.section import Section


class CheckpointSection(Section):
    """Checkpoints, from which `megacov resume` goes on."""

    every: StrictInt = Field(10, ge=0)
    """Save after every so many steps, at the end, and when asked to leave; 0 never saves. [steps]"""
    keep_last: StrictInt = Field(2, ge=1)
    """Newest checkpoints left on disk. [checkpoints]"""
    keep_every: StrictInt = Field(0, ge=0)
    """Checkpoints of steps divisible by this stay for good; 0 keeps none of them. [steps]"""
    background: bool = True
    """Write while training goes on; it waits only for the copy to main memory."""
    deadline_s: StrictFloat = Field(1800.0, gt=0)
    """A save that takes longer has failed. [s]"""
    max_failures: StrictInt = Field(2, ge=0)
    """Saves in a row that may fail, with a warning each, before the run stops. [saves]"""
    grace_s: StrictFloat = Field(120.0, gt=0)
    """After SIGTERM or SIGUSR1 the run finishes its update, saves and leaves, within this time at most. [s]"""
