"""Hyperparameters of STEER's loss; its weights belong to its selection."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class SteerLoss(LossSection):
    """STEER: PPO's clip, with the weights that the selection steer gives."""

    needs_selection: ClassVar[bool | None] = True
    own_selection: ClassVar[str | None] = "steer"

    name: Literal["steer"] = "steer"
    """STEER."""
    clip_low: StrictFloat = Field(0.2, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(0.28, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
    dual_clip: StrictFloat | None = Field(10.0, gt=1)
    """Ratio above which a token of negative advantage is clipped; null for none. [ratio]"""
