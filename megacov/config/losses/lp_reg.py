"""Hyperparameters of Lp-Reg's loss; the share of tokens belongs to its selection."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class LpRegLoss(LossSection):
    """Lp-Reg: a penalty on improbable tokens that become less likely than under the filtered old policy."""

    needs_selection: ClassVar[bool | None] = True
    own_selection: ClassVar[str | None] = "lp_reg"
    needs_filtered_old: ClassVar[bool] = True

    name: Literal["lp_reg"] = "lp_reg"
    """Lp-Reg."""
    kl_coef: StrictFloat = Field(1.0, ge=0)
    """Weight of the penalty. [per nat]"""
    min_p: StrictFloat = Field(0.02, gt=0, le=1)
    """Entries of the old policy below this share of its largest probability are noise. [share]"""
    max_gap: StrictFloat = Field(2.6, gt=0, le=50)
    """Beyond this gap to the filtered old policy the penalty grows linearly; the authors cut it there. [nats]"""
    clip_low: StrictFloat = Field(1.0, ge=0, le=1)
    """The probability ratio may fall to 1 - clip_low. [ratio]"""
    clip_high: StrictFloat = Field(9.0, ge=0)
    """The probability ratio may rise to 1 + clip_high. [ratio]"""
