"""Rules between rewards and other settings, collected by `rules`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megacov.config.schema import RunConfig

_CODE = "code"
_TOTAL_S = 25.0  # default of the argument total_s of the verifier code


def programs_run_only_where_allowed(config: RunConfig) -> str | None:
    """The one who starts a run decides whether programs that nobody has read may run on the machine of rank 0."""
    if config.rewards.allow_code:
        return None
    place = next((place for place, _ in _code_verifiers(config)), None)
    if place is None:
        return None
    return (
        f"{place} is code, which runs the programs of responses on the machine of rank 0, and rewards.allow_code is "
        "false: read docs/code_and_judges.md and set rewards.allow_code=true, or use another verifier."
    )


def tests_end_before_the_verdict_is_due(config: RunConfig) -> str | None:
    """A slow program scores 0; a verdict that is late counts as a failure of the verifier, and may end the run."""
    for place, arguments in _code_verifiers(config):
        total_s = arguments.get("total_s", _TOTAL_S)
        if isinstance(total_s, int | float) and total_s >= config.rewards.timeout_s:
            return (
                f"{place} is code, whose tests may take total_s = {total_s:g} s, and rewards.timeout_s is "
                f"{config.rewards.timeout_s:g}: raise rewards.timeout_s, or lower the argument total_s."
            )
    return None


REWARD_RULES = (programs_run_only_where_allowed, tests_end_before_the_verdict_is_due)


def _code_verifiers(config: RunConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where the verifier code is used, also as a part of another, and its arguments."""
    yield from find_code("rewards.verifier", config.rewards.verifier, config.rewards.arguments)
    for number, source in enumerate(config.data.sources):
        if source.verifier is not None:
            arguments = source.verifier_arguments or {}
            yield from find_code(f"data.sources.{number}.verifier", source.verifier, arguments)


def find_code(place: str, verifier: Any, arguments: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Places at which the verifier code is used, also as a part of another, with its arguments."""
    arguments = arguments if isinstance(arguments, Mapping) else {}
    if verifier == _CODE or (isinstance(verifier, str) and verifier.startswith("megacov.rewards.verifiers.code:")):
        yield place, arguments
    parts = arguments.get("parts")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping):
            yield from find_code(f"a part of {place}", part.get("verifier"), part.get("arguments"))
