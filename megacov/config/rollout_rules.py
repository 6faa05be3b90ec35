"""Rules between the settings of rollouts and others, collected by `rules`."""

from __future__ import annotations

from megacov.config.schema import RunConfig


def partial_rollouts_have_room_to_age(config: RunConfig) -> str | None:
    """A carried response is two steps old when it is trained on, because sampling is one step ahead."""
    rollout = config.rollout
    if not rollout.is_partial or rollout.max_staleness >= 2:
        return None
    return (
        f"{_named(config)} and rollout.max_staleness is {rollout.max_staleness}: a response that is continued in the "
        "next step is two steps old when it is trained on, and would be dropped; set rollout.max_staleness=2."
    )


def partial_rollouts_do_not_repeat(config: RunConfig) -> str | None:
    """The groups that end first depend on timing."""
    if not config.rollout.is_partial or not config.run.deterministic:
        return None
    return (
        f"{_named(config)} and run.deterministic is true: the responses that end first depend on timing; set "
        "run.deterministic=false, or leave partial rollouts off."
    )


def overlong_buffer_fits_a_response(config: RunConfig) -> str | None:
    """The penalty for long responses starts at a positive length."""
    buffer, longest = config.rewards.overlong_buffer, config.rollout.max_response_length
    if buffer < longest:
        return None
    return (
        f"rewards.overlong_buffer is {buffer} and rollout.max_response_length {longest}: every response would lose "
        f"reward by its length; set the buffer to a part of it, as in {max(1, longest // 5)}."
    )


def _named(config: RunConfig) -> str:
    rollout = config.rollout
    if rollout.extra_prompts > 0:
        return f"rollout.extra_prompts is {rollout.extra_prompts}"
    return f"rollout.partial_after_s is {rollout.partial_after_s}"
