"""Hyperparameters of KL-Cov."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictFloat

from megacov.config.loss_section import LossSection


class KlCovLoss(LossSection):
    """KL-Cov: no PPO clip; selected tokens pay for moving away from the old policy."""

    needs_selection: ClassVar[bool | None] = True

    name: Literal["kl_cov"] = "kl_cov"
    """KL-Cov."""
    kl_coef: StrictFloat = Field(1.0, ge=0)
    """Weight of the penalty on selected tokens. [per nat]"""
    estimator: Literal["abs", "k2", "k3"] = "abs"
    """Penalty in d = log_prob - old_log_prob: abs is |d| (the paper's code), k2 is d^2 / 2, k3 is e^d - 1 - d."""
