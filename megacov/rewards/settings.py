"""Which verifier judges, with which arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megacov.config import RunConfig


@dataclass(frozen=True, slots=True)
class VerifierSettings:
    """A verifier and its arguments.

    name: one of megacov's own, or "package.module:function".
    arguments: keyword arguments of every call; they must be JSON.
    setting: path of the setting that names the verifier, for messages.
    arguments_setting: path of the setting with its arguments, for messages.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    setting: str = field(default="rewards.verifier", compare=False)
    arguments_setting: str = field(default="rewards.arguments", compare=False)

    @property
    def key(self) -> str:
        """Equal for verifiers that judge alike."""
        return json.dumps([self.name, dict(self.arguments)], sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """All fields, for another process."""
        return {
            "name": self.name,
            "arguments": dict(self.arguments),
            "setting": self.setting,
            "arguments_setting": self.arguments_setting,
        }


@dataclass(frozen=True, slots=True)
class RunVerifiers:
    """The verifiers of a run.

    settings: verifiers, each different from the others.
    of_source: the place in `settings` of each source's verifier.
    """

    settings: tuple[VerifierSettings, ...]
    of_source: tuple[int, ...]


def verifiers_of(config: RunConfig) -> RunVerifiers:
    """Find the verifiers of a run's sources; sources whose verifiers judge alike share one."""
    places: dict[str, int] = {}
    settings: list[VerifierSettings] = []
    of_source = []
    given = config.data.sources or (None,)
    for number, (source, own) in enumerate(zip(config.sources, given, strict=True)):
        assert source.verifier is not None and source.verifier_arguments is not None
        is_own = own is not None and own.verifier is not None
        has_own_arguments = own is not None and (is_own or own.verifier_arguments is not None)
        each = VerifierSettings(
            source.verifier,
            source.verifier_arguments,
            setting=f"data.sources.{number}.verifier" if is_own else "rewards.verifier",
            arguments_setting=f"data.sources.{number}.verifier_arguments" if has_own_arguments else "rewards.arguments",
        )
        of_source.append(places.setdefault(each.key, len(settings)))
        if of_source[-1] == len(settings):
            settings.append(each)
    return RunVerifiers(tuple(settings), tuple(of_source))
