"""Hyperparameters of CISPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class CispoLoss(LossSection):
    """CISPO: the importance weight of a token is cut, and its gradient kept."""

    name: Literal["cispo"] = "cispo"
    """CISPO."""
    clip_low: StrictFloat = Field(1.0, ge=0, le=1)
    """The importance weight is at least 1 - clip_low; 1 for no lower bound. [ratio]"""
    clip_high: StrictFloat = Field(6.0, ge=0)
    """The importance weight is at most 1 + clip_high. [ratio]"""
