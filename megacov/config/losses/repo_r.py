"""Hyperparameters of REPO-R's loss; its controller is algorithm.controller with the name repo_r."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class RepoRLoss(LossSection):
    """REPO-R: PPO's clipped loss with advantages that grow or shrink with how unlikely a token is."""

    name: Literal["repo_r"] = "repo_r"
    """REPO-R."""
    zeta: StrictFloat = Field(0.01, ge=-1, le=1)
    """Strength; above 0 raises the entropy, below 0 lowers it, 0 is PPO. [per nat]"""
    clip_low: StrictFloat = Field(0.2, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(0.2, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
    dual_clip: StrictFloat | None = Field(None, gt=1)
    """Ratio above which a token of negative advantage is clipped too; null for none. [ratio]"""
