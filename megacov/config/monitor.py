"""Settings of what a run shows while it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictInt

from megacov.config.section import Section


class MonitorSection(Section):
    """Output of a run while it trains."""

    log_every: StrictInt = Field(1, ge=1)
    """Steps between two records of scalars. [steps]"""
    cov_histogram_every: StrictInt = Field(10, ge=0)
    """Steps between two histograms of the covariance; 0 writes none. [steps]"""
    progress: Literal["auto", "on", "off"] = "auto"
    """Progress bars below the lines of finished steps; auto shows them on a terminal."""
    samples_per_step: StrictInt = Field(8, ge=0)
    """Responses of each step in RUN/samples: best and worst reward, the longest, one that was cut, then some of as many
    prompts as possible. [sequences]"""
