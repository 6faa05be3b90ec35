"""Hyperparameters of PPO's clipped loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class PpoClipLoss(LossSection):
    """PPO's clipped policy loss: GRPO as it is commonly run, clip-higher where clip_high > clip_low."""

    name: Literal["ppo_clip"] = "ppo_clip"
    """PPO's clipped loss."""
    clip_low: StrictFloat = Field(0.2, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(0.2, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
    dual_clip: StrictFloat | None = Field(None, gt=1)
    """Ratio above which a token of negative advantage is clipped too; null for none. [ratio]"""
