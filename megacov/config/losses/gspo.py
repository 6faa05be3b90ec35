"""Hyperparameters of GSPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class GspoLoss(LossSection):
    """GSPO: PPO's clip on the geometric mean of a sequence's importance ratios."""

    name: Literal["gspo"] = "gspo"
    """GSPO."""
    clip_low: StrictFloat = Field(3e-4, ge=0, le=1)
    """The ratio of a sequence may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(4e-4, ge=0)
    """The ratio of a sequence may rise to 1 + clip_high. [ratio]"""
