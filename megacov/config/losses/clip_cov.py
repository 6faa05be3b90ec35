"""Hyperparameters of Clip-Cov."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class ClipCovLoss(LossSection):
    """Clip-Cov: selected tokens add nothing to the loss and keep their place in the denominator."""

    needs_selection: ClassVar[bool | None] = True

    name: Literal["clip_cov"] = "clip_cov"
    """Clip-Cov."""
    clip_low: StrictFloat = Field(1.0, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(1.0, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
    dual_clip: StrictFloat | None = Field(None, gt=1)
    """Ratio above which a token of negative advantage is clipped too; null for none. [ratio]"""
