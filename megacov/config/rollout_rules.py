"""Rules of partial rollouts with other settings, in the manner of `rules.py`."""

from __future__ import annotations

from megacov.config.schema import RunConfig


def partial_rollouts_have_room_to_age(config: RunConfig) -> str | None:
    """What is carried from one step to the next is two steps old when it is trained on: sampling is one step ahead."""
    rollout = config.rollout
    if not rollout.is_partial or rollout.max_staleness >= 2:
        return None
    return (
        f"{_named(config)} and rollout.max_staleness is {rollout.max_staleness}: a response that is gone on with in "
        "the next step is two steps old when it is trained on, and would be dropped; set rollout.max_staleness=2."
    )


def partial_rollouts_do_not_repeat(config: RunConfig) -> str | None:
    """Which groups end first depends on time."""
    if not config.rollout.is_partial or not config.run.deterministic:
        return None
    return (
        f"{_named(config)} and run.deterministic is true: which responses end first is never the same twice; set "
        "run.deterministic=false, or leave partial rollouts off."
    )


def _named(config: RunConfig) -> str:
    rollout = config.rollout
    if rollout.extra_prompts > 0:
        return f"rollout.extra_prompts is {rollout.extra_prompts}"
    return f"rollout.partial_after_s is {rollout.partial_after_s}"
