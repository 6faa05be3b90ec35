"""Hyperparameters of ERC."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class ErcLoss(LossSection):
    """ERC: PPO's clip, and no gradient where a token's entropy has moved too far."""

    needs_old_entropy: ClassVar[bool] = True

    name: Literal["erc"] = "erc"
    """ERC."""
    clip_low: StrictFloat = Field(0.2, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(0.28, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
    entropy_low: StrictFloat = Field(0.95, ge=0, le=1)
    """Smallest entropy over old entropy of a token with a gradient. [ratio]"""
    entropy_high: StrictFloat = Field(1.05, ge=1)
    """Largest entropy over old entropy of a token with a gradient. [ratio]"""
