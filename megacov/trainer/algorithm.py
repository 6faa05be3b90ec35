"""The algorithm of a run, resolved once from its configuration: which loss, which selection, which denominators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megacov.config.schema import RunConfig
from megacov.losses import Loss, get_loss
from megacov.selection import Selector, get_selector


@dataclass(frozen=True)
class Algorithm:
    """Functions with their hyperparameters.

    select: None for a loss that selects nothing.
    scope: over which tokens covariance and selection run: "mini_batch", "rollout_batch" or "micro_batch".
    log_probs: "current" or "old", what the covariance is taken of.
    constant_norm: tokens, for the aggregation mode that divides by a constant.
    """

    loss: Loss
    loss_hyperparameters: dict[str, Any]
    select: Selector | None
    selection_hyperparameters: dict[str, Any]
    scope: str
    log_probs: str
    aggregation: str
    constant_norm: float
    entropy_coef: float
    ref_kl_coef: float
    ref_kl_estimator: str
    normalize_std: bool


def build_algorithm(config: RunConfig) -> Algorithm:
    """Look up loss and selection by name.

    Args:
        config: of the run.

    Returns:
        The resolved algorithm.

    Raises:
        ConfigError: a name that no registry knows.
    """
    algorithm, selection = config.algorithm, config.algorithm.selection
    step_tokens = config.sequences_per_update * config.rollout.max_response_length
    return Algorithm(
        loss=get_loss(algorithm.loss.name),
        loss_hyperparameters=algorithm.loss.hyperparameters(),
        select=None if selection.name == "none" else get_selector(selection.name),
        selection_hyperparameters=selection.hyperparameters(),
        scope=selection.scope,
        log_probs=selection.log_probs,
        aggregation=algorithm.aggregation,
        constant_norm=algorithm.aggregation_norm or step_tokens,
        entropy_coef=algorithm.entropy_coef,
        ref_kl_coef=algorithm.ref_kl_coef,
        ref_kl_estimator=algorithm.ref_kl_estimator,
        normalize_std=algorithm.advantages.normalize_std,
    )
