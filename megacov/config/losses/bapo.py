"""Settings of BAPO's loss; its bounds belong to its selection."""

from __future__ import annotations

from typing import ClassVar, Literal

from megacov.config.loss_section import LossSection


class BapoLoss(LossSection):
    """BAPO: tokens beyond the range that the selection bapo finds have no gradient."""

    needs_selection: ClassVar[bool | None] = True
    own_selection: ClassVar[str | None] = "bapo"

    name: Literal["bapo"] = "bapo"
    """BAPO."""
