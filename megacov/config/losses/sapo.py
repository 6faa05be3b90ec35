"""Hyperparameters of SAPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class SapoLoss(LossSection):
    """SAPO: a soft gate on the importance ratio in place of PPO's clip."""

    name: Literal["sapo"] = "sapo"
    """SAPO."""
    tau_positive: StrictFloat = Field(1.0, gt=0)
    """Temperature of the gate where the advantage is positive; a greater one shuts sooner. [per ratio]"""
    tau_negative: StrictFloat = Field(1.05, gt=0)
    """Temperature of the gate elsewhere. [per ratio]"""
