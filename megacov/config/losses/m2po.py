"""Settings of M2PO's loss; its threshold belongs to its selection."""

from __future__ import annotations

from typing import ClassVar, Literal

from megacov.config.loss_section import LossSection


class M2poLoss(LossSection):
    """M2PO: no clip; tokens that the selection m2po picks are left out."""

    needs_selection: ClassVar[bool | None] = True
    own_selection: ClassVar[str | None] = "m2po"
    is_anchored_at_rollout: ClassVar[bool] = True

    name: Literal["m2po"] = "m2po"
    """M2PO."""
