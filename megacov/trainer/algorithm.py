"""The algorithm of a run, resolved once from its configuration: which loss, which selection, which denominators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from megacov.advantages import ADVANTAGES
from megacov.config.loss_section import ImportedLoss
from megacov.config.old_log_prob_rules import old_entropy_mismatch
from megacov.config.rules import correction_mismatch, selection_mismatch
from megacov.config.schema import RunConfig
from megacov.errors import ConfigError
from megacov.losses import Loss, get_loss
from megacov.losses.imported import check_hyperparameters, try_loss
from megacov.plan.correction import CorrectionCost, correction_cost
from megacov.selection import Selector, get_selector
from megacov.trainer.control import Control, build_control

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EntropyMask:
    """keep: "high" or "low" entropy carries the gradient; ratio: share of tokens that count as high."""

    keep: str
    ratio: float


@dataclass(frozen=True)
class RolloutCorrection:
    """As `megacov.losses.importance_weights`; level: "token", "sequence" or "sequence_mean"."""

    level: str
    mode: str
    lower: float
    upper: float


@dataclass(frozen=True)
class SoftAdvantages:
    """coef: as in `megacov.advantages.soft_advantages`; discount: as in `megacov.ops.future_sums`."""

    coef: float
    discount: float


@dataclass(frozen=True)
class Algorithm:
    """Functions with their hyperparameters, and the seed of random selections.

    advantages: fn(rewards [n], group_ids [n]) -> advantages [n].
    select: None for a loss that selects nothing.
    scope: over which tokens covariance and selection run: "mini_batch", "rollout_batch" or "micro_batch".
    log_probs: "current" or "old", what the covariance is taken of.
    defers: whether later optimizer steps take the current log-probs that they select by from their own forwards, whose
        backwards wait; otherwise from another pass.
    kept_positions: most positions of an optimizer step on a rank with which it does so; None for any number.
    corrects: whether later optimizer steps that do not defer take them from a forward-backward pass without selection,
        and correct its gradient; otherwise from another pass.
    correction_cost: with it, only those do so for which that is known to be cheaper; None for all.
    control: sets one of these values anew for each step; None where all stay as they are.
    rollout_is_old: the old log-probs are the rollout server's, so that the first optimizer step is like later ones.
    constant_norm: tokens, for the aggregation mode that divides by a constant.
    entropy_mask, rollout_correction: None where every loss token takes part, unweighted.
    soft: None where entropy is no reward.
    denominator: tokens that aggregation divides by, "all" or "kept".
    """

    advantages: Callable[[Tensor, Tensor], Tensor]
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
    seed: int
    ref_kl_max_gap: float | None = None
    entropy_mask: EntropyMask | None = None
    rollout_correction: RolloutCorrection | None = None
    denominator: str = "all"
    defers: bool = False
    kept_positions: int | None = None
    corrects: bool = False
    correction_cost: CorrectionCost | None = None
    rollout_is_old: bool = False
    soft: SoftAdvantages | None = None
    control: Control | None = None

    @property
    def old_min_p(self) -> float | None:
        """The filter of the old policy's distribution that the loss asks for; None where it asks for none."""
        return float(self.loss_hyperparameters["min_p"]) if self.loss.needs_filtered_old else None


def resolve_loss(config: RunConfig) -> Loss:
    """Look up the loss by name. One that is imported is checked here, since no schema knows it.

    Args:
        config: of the run.

    Returns:
        The loss, to be called with `config.algorithm.loss.hyperparameters()`.

    Raises:
        ConfigError: no such loss, a hyperparameter that it does not have, a selection that does not fit, or a mistake
            that a call on a few tokens shows.
    """
    section = config.algorithm.loss
    loss = get_loss(section.name)
    if isinstance(section, ImportedLoss):
        hyperparameters = section.hyperparameters()
        check_hyperparameters(loss, hyperparameters)
        mismatch = selection_mismatch(config, needs_selection=loss.needs_selection)
        if mismatch is None and loss.is_anchored_at_rollout:
            mismatch = correction_mismatch(config)
        if mismatch is None and (loss.needs_old_entropy or loss.needs_filtered_old):
            mismatch = old_entropy_mismatch(config)
        if mismatch is not None:
            raise ConfigError(mismatch)
        try_loss(loss, hyperparameters)
    return loss


def build_algorithm(config: RunConfig, *, kept_positions: int | None = None) -> Algorithm:
    """Look up loss and selection by name.

    Args:
        config: of the run.
        kept_positions: positions of an optimizer step on a rank whose activations fit into memory; None if unknown.
            `selection.method: auto` defers the backwards of so many and of no more.

    Returns:
        The resolved algorithm.

    Raises:
        ConfigError: a name that no registry knows.
    """
    algorithm, selection = config.algorithm, config.algorithm.selection
    method, parallel = selection.method, config.parallel
    cost = correction_cost(config.model.recompute, pipeline=parallel.pipeline, virtual=parallel.virtual_pipeline)
    mask, correction, soft = algorithm.entropy_mask, algorithm.rollout_correction, algorithm.max_entropy
    step_tokens = config.sequences_per_update * config.rollout.max_response_length
    return Algorithm(
        advantages=partial(ADVANTAGES[algorithm.advantages.name], **algorithm.advantages.hyperparameters()),
        loss=resolve_loss(config),
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
        ref_kl_max_gap=algorithm.ref_kl_max_gap,
        seed=config.run.seed,
        entropy_mask=None if mask.keep == "all" else EntropyMask(mask.keep, mask.ratio),
        rollout_correction=None if correction.level == "none" else RolloutCorrection(**correction.model_dump()),
        denominator=algorithm.denominator,
        defers=method == "deferred" or (method == "auto" and bool(kept_positions)),
        kept_positions=None if method == "deferred" else kept_positions,
        corrects=config.may_correct_gradients,
        correction_cost=cost if method == "auto" else None,
        rollout_is_old=algorithm.old_log_probs == "rollout",
        soft=None if soft.coef == 0 else SoftAdvantages(soft.coef, soft.discount),
        control=build_control(config),
    )
