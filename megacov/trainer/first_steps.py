"""Warnings that only the first steps of a run can give, from what they measured."""

from __future__ import annotations

from collections.abc import Mapping

from megacov.config import RunConfig
from megacov.config.selection_size import tokens_in_scope, why_too_few

_FIRST_STEPS = 3


def first_step_warning(config: RunConfig, metrics: Mapping[str, float], *, step: int) -> str | None:
    """Warn if a covariance ratio selected too few of the tokens that a step had.

    Args:
        config: the resolved configuration.
        metrics: metrics of the step, by tag.
        step: steps done, this one included.

    Returns:
        One sentence, or None; always None after the first three steps.
    """
    if step > _FIRST_STEPS or "rollout/length_mean" not in metrics:
        return None
    sequences = metrics["rollout/groups"] * config.mean_group_size
    tokens = tokens_in_scope(config, metrics["rollout/length_mean"] * sequences)
    why = why_too_few(config, tokens, at_most=False)
    return None if why is None else f"step {step}: {why}"
