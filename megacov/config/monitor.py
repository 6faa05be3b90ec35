"""Settings of what a run shows while it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from megacov.config.section import Section

AlarmKind = Literal[
    "collapse",
    "explosion",
    "silent_collapse",
    "kl_cov_inert",
    "empty_band",
    "rising_mismatch",
    "drifting_length",
    "reward_ceiling",
    "stalled_phase",
]


class AlarmsSection(Section):
    """Thresholds of the alarms, which docs/alarms.md explains."""

    entropy_floor: StrictFloat = Field(0.05, gt=0)
    """Entropy that counts as collapsed. [nats]"""
    collapse_within: StrictInt = Field(10, ge=1)
    """Predicted time until the entropy is at the floor that raises the alarm. [steps]"""
    explosion_factor: StrictFloat = Field(1.5, gt=1)
    """Entropy over the lowest of the first five logged steps; it must also have risen by 0.5 nats. [ratio]"""
    mismatch_factor: StrictFloat = Field(3.0, gt=1)
    """Mean difference of server's and trainer's log-probs over that of the first ten logged steps. [ratio]"""
    mismatch_floor: StrictFloat = Field(0.02, ge=0)
    """A smaller difference raises no alarm. [nats]"""
    length_factor: StrictFloat = Field(2.0, gt=1)
    """Mean length of the responses over that of 20 logged steps before, or the reverse. [ratio]"""
    truncation_share: StrictFloat = Field(0.5, gt=0, le=1)
    """Responses that end at a length limit. [fraction]"""
    stall_factor: StrictFloat = Field(5.0, gt=1)
    """Time of a phase over its median of the 20 logged steps before. [ratio]"""


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
    samples_mb: StrictInt = Field(512, ge=0)
    """Size of RUN/samples beyond which the oldest steps lose the values of their tokens, and then their texts; the
    newest step stays. 0 writes texts alone, without a limit. [MB]"""
    token_table_every: StrictInt = Field(10, ge=0)
    """Steps between two tables of the tokens that are selected most or lose most entropy; 0 writes none. [steps]"""
    theorem_every: StrictInt = Field(10, ge=0)
    """Steps between two comparisons of the predicted with the observed change of entropy, which cost a forward pass of
    one micro-batch; only in steps whose scalars are recorded; 0 makes none. [steps]"""
    theorem_gradient: StrictBool = False
    """Predict it also by the derivative along the optimizer step, which costs a forward and a backward pass of that
    micro-batch, and memory for a copy of the optimizer's slice of weights and gradient."""
    alarms: AlarmsSection = AlarmsSection()
    """Thresholds of the alarms."""
    end_on: tuple[AlarmKind, ...] = ()
    """Alarms that end the run, after a checkpoint, with exit code 12."""
