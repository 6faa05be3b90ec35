"""Hyperparameters of EntroPIC's loss; its controller is algorithm.controller with the name entropic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class EntropicLoss(LossSection):
    """EntroPIC: likely tokens of positive and of negative advantage weigh more or less, as the entropy needs it."""

    name: Literal["entropic"] = "entropic"
    """EntroPIC."""
    alpha: StrictFloat = Field(0.0, ge=-1, le=1)
    """Likely tokens weigh 1 + alpha or 1 - alpha, by the sign of their advantage; above 0 lowers entropy. [factor]"""
    threshold: StrictFloat = Field(0.95, gt=0, lt=1)
    """Tokens of a higher probability are likely. [probability]"""
    clip_low: StrictFloat = Field(0.2, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(0.2, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
    dual_clip: StrictFloat | None = Field(None, gt=1)
    """Ratio above which a token of negative advantage is clipped too; null for none. [ratio]"""
