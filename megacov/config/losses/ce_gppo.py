"""Hyperparameters of CE-GPPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class CeGppoLoss(LossSection):
    """CE-GPPO: tokens beyond PPO's range keep a bounded gradient."""

    name: Literal["ce_gppo"] = "ce_gppo"
    """CE-GPPO."""
    clip_low: StrictFloat = Field(0.2, ge=0, le=1)
    """The range of the ratio begins at 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(0.2, ge=0)
    """The range of the ratio ends at 1 + clip_high. [ratio]"""
    beta_low: StrictFloat = Field(0.75, gt=0)
    """Weight of tokens of negative advantage below the range; lowers the entropy. [factor]"""
    beta_high: StrictFloat = Field(1.0, gt=0)
    """Weight of tokens of positive advantage above the range; raises the entropy. [factor]"""
