"""Rules between rewards and other settings, collected by `rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megacov.config.schema import RunConfig
from megacov.config.verifier_time import find_uses, too_slow


def programs_run_only_where_allowed(config: RunConfig) -> str | None:
    """The one who starts a run decides whether programs that nobody has read may run on the machine of rank 0."""
    if config.rewards.allow_code:
        return None
    place = next((place for used in _verifiers(config) for place in find_code(*used)), None)
    if place is None:
        return None
    return (
        f"{place} is code, which runs the programs of responses on the machine of rank 0, and rewards.allow_code is "
        "false: read docs/code_and_judges.md and set rewards.allow_code=true, or use another verifier."
    )


def a_verifier_ends_before_its_verdict_is_due(config: RunConfig) -> str | None:
    """A slow program scores 0; a verdict that is late counts as a failure of the verifier, and may end the run."""
    for used in _verifiers(config):
        sentence = too_slow(*used, timeout_s=config.rewards.timeout_s, setting="rewards.timeout_s")
        if sentence is not None:
            return sentence
    return None


REWARD_RULES = (programs_run_only_where_allowed, a_verifier_ends_before_its_verdict_is_due)


def find_code(place: str, verifier: Any, arguments: Any) -> Iterator[str]:
    """Places at which the verifier code is used, also as a part of another."""
    return (use.place for use in find_uses(place, verifier, arguments) if use.name == "code")


def _verifiers(config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Place, name and arguments of each verifier of the run."""
    yield "rewards.verifier", config.rewards.verifier, config.rewards.arguments
    for number, source in enumerate(config.data.sources):
        if source.verifier is not None:
            yield f"data.sources.{number}.verifier", source.verifier, source.verifier_arguments
