"""Hyperparameters of DPPO with the binary total variation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class DppoLoss(LossSection):
    """DPPO (binary TV): a token whose probability has moved too far the way its advantage favours has no gradient."""

    is_anchored_at_rollout: ClassVar[bool] = True

    name: Literal["dppo"] = "dppo"
    """DPPO with the binary total variation."""
    max_fall: StrictFloat = Field(0.2, ge=0, le=1)
    """Probability that a token of negative advantage may lose. [probability]"""
    max_rise: StrictFloat = Field(0.2, ge=0, le=1)
    """Probability that a token of positive advantage may gain. [probability]"""
    max_ratio: StrictFloat = Field(20.0, ge=1)
    """Largest importance weight. [ratio]"""
