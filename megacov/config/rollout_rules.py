"""Rules between partial rollouts, over-sampling, the penalty for length and other settings, collected by `rules`."""

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


def over_sampling_has_groups_to_replace(config: RunConfig) -> str | None:
    """Without filtering, a step trains on the first prompts of the data, whatever else was sampled."""
    rollout = config.rollout
    if rollout.over_sample == 1 or rollout.filter_groups:
        return None
    return (
        f"rollout.over_sample is {rollout.over_sample} and rollout.filter_groups is false: no group is dropped, so "
        "what is over-sampled is never used; set rollout.over_sample=1.0."
    )


def over_sampling_is_not_partial(config: RunConfig) -> str | None:
    """Partial rollouts carry over what over-sampling gives up."""
    if config.rollout.over_sample == 1 or not config.rollout.is_partial:
        return None
    return (
        f"rollout.over_sample is {config.rollout.over_sample} and {_named(config)}, which also starts more prompts "
        "than a step trains on and keeps the rest for the next step: use one of them."
    )


ROLLOUT_RULES = (
    partial_rollouts_have_room_to_age,
    partial_rollouts_do_not_repeat,
    over_sampling_has_groups_to_replace,
    over_sampling_is_not_partial,
    overlong_buffer_fits_a_response,
)


def _named(config: RunConfig) -> str:
    rollout = config.rollout
    if rollout.extra_prompts > 0:
        return f"rollout.extra_prompts is {rollout.extra_prompts}"
    return f"rollout.partial_after_s is {rollout.partial_after_s}"
