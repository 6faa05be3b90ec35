"""From YAML files and overrides to one checked configuration, and back to YAML.

A file may extend others: `extends: ../models/tiny.yaml`, or a list. Later files win over earlier ones, a file wins over
those that it extends, and overrides (`optimizer.lr=3e-4`) win over all. Mappings are merged key by key; lists are
replaced. A loss or a selection with another `name` replaces the whole section, because the other keys belong to the
name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megacov.config.fields import UNION_KEY, choice_paths
from megacov.config.messages import first_sentence, show
from megacov.config.rules import check_rules
from megacov.config.schema import RunConfig
from megacov.config.sweep import SweepSection
from megacov.config.sweep_search import ListSearch
from megacov.config.yaml_text import dump_yaml, parse_yaml, read_yaml
from megacov.errors import ConfigError
from megacov.json_text import MAX_DEPTH

_CHOICES = choice_paths(RunConfig) | choice_paths(SweepSection)
_MAX_CHAIN, _MAX_FILES = 20, 100
_MAY_HOLD_NUL = ("rollout.stop", "data.prompt_field", "data.answer_field")  # compared with text, never a path or name


def load_config(path: str | Path, overrides: Iterable[str] = (), *, over: Iterable[Path] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        path: a YAML file.
        overrides: texts of the form `section.key=value`, whose value is read as YAML. Later overrides win.
        over: YAML files laid over the first; later files win, and overrides win over all.

    Returns:
        The configuration, checked by every rule that needs no model.

    Raises:
        ConfigError: a file is missing or is not YAML, a key is unknown, a value is impossible, or two values
            contradict each other.
    """
    reader = _Reader()
    values = reader.read(Path(path))
    for each in over:
        values = _merge(values, reader.read(each))
    return make_config(_merge(values, _parse_overrides(overrides)))


def load_sweep(path: Path, overrides: Iterable[str] = ()) -> SweepSection:
    """Read a sweep.

    Args:
        path: a YAML file, which may extend others.
        overrides: changes to the sweep's own settings, as in `seeds=[0,1]`.

    Returns:
        The sweep, with paths that no longer depend on its file; the runs that it names are not looked at yet.

    Raises:
        ConfigError: as `load_config`.
    """
    values = _merge(_Reader().read(path), _parse_overrides(overrides))
    _refuse_nul(values)
    try:
        sweep = SweepSection.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_sentence(error, SweepSection)}") from None
    search = sweep.search
    if isinstance(search, ListSearch):
        entries = [
            each.model_copy(update={"extends": tuple(path.parent / file for file in each.extends)})
            for each in search.entries
        ]
        search = search.model_copy(update={"entries": tuple(entries)})
    return sweep.model_copy(update={"base": path.parent / sweep.base, "search": search})


def config_files(path: Path) -> list[Path]:
    """A configuration file that can be read, and all files that it extends, directly or not."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        file = Path(os.path.abspath(waiting.pop()))  # not resolved: the job reads a link by its own name
        if file not in found:
            found[file] = None
            waiting += _parents(_read_file(file, extended_by=None).get("extends"), file)
    return list(found)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Check values and freeze them.

    Args:
        values: sections by name, each a mapping.

    Returns:
        The configuration, checked by every rule that needs no model.

    Raises:
        ConfigError: a key is unknown, a value is impossible, or two values contradict each other.
    """
    _refuse_nul(values)
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        # "from None", because pydantic's own message repeats the same in many lines.
        raise ConfigError(first_sentence(error, RunConfig)) from None
    check_rules(config)
    return config


def make_data_config(path: str, overrides: Iterable[str] = ()) -> RunConfig:
    """A configuration that says how to read prompts, for a command that does nothing else.

    Args:
        path: file, folder or address of the prompts.
        overrides: settings of data, as in `load_config`.

    Returns:
        The configuration; no rule has looked at its other sections.

    Raises:
        ConfigError: as `make_config`.
    """
    rest = {"run": {"name": "data", "steps": 1}, "model": {"path": "."}, "rewards": {"verifier": "sum_pairs"}}
    values = _merge({**rest, "data": {"path": path}}, _parse_overrides(overrides))
    _refuse_nul(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_sentence(error, RunConfig)) from None


def write_override(key: str, value: Any) -> str:
    """The override that gives a setting a value, whatever characters that has: a path may hold ` #` or `: `.

    Args:
        key: dotted key.
        value: text, number, boolean, None, or a list or mapping of these.

    Returns:
        `section.key=value`, which `load_config` reads as this value.
    """
    text = dump_yaml(value).rstrip("\n").removesuffix("\n...")  # which ends a document of one plain word
    return f"{key}={text}"


def dump_config(config: RunConfig) -> str:
    """Write a configuration with every setting spelt out, as YAML that loads to an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def _refuse_nul(values: Any, at: str = "") -> None:
    """No path, name or argument of a program can hold a NUL, and Python's own error for it is no sentence."""
    if isinstance(values, str) and "\0" in values and at not in _MAY_HOLD_NUL:
        raise ConfigError(f"{at} is {show(values)}: it must not hold a NUL character (\\0).")
    for key, value in values.items() if isinstance(values, Mapping) else ():
        _refuse_nul(value, f"{at}.{key}" if at else key)
    for each in values if isinstance(values, list | tuple) else ():
        _refuse_nul(each, at)


class _Reader:
    """Reads files with those that they extend, each file once, however many others extend it."""

    def __init__(self) -> None:
        self._read: dict[str, dict[str, Any]] = {}

    def read(self, path: Path, *, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Read a file, over the files that it extends. `chain`: files that led here by their `extends`."""
        here = os.path.realpath(path)
        if here in self._read:
            return self._read[here]
        if here in (os.path.realpath(file) for file in chain):
            loop = " -> ".join(str(file) for file in (*chain, path))
            raise ConfigError(f"these files extend each other in a circle: {loop}; remove one `extends`.")
        if len(chain) >= _MAX_CHAIN or len(self._read) >= _MAX_FILES:
            raise ConfigError(
                f"{chain[0]} extends more than {_MAX_CHAIN} files in a row or {_MAX_FILES} in all; merge some of them."
            )
        own = _read_file(path, extended_by=chain[-1] if chain else None)
        values: dict[str, Any] = {}
        for parent in _parents(own.pop("extends", None), path):
            values = _merge(values, self.read(parent, chain=(*chain, path)))
        self._read[here] = _merge(values, own)
        return self._read[here]


def _read_file(path: Path, *, extended_by: Path | None) -> dict[str, Any]:
    named = f"{extended_by} extends {path}, which" if extended_by else f"the configuration file {path}"
    try:
        values = read_yaml(path, source=str(path))
    except OSError as error:
        raise ConfigError(f"{named} cannot be read ({error.strerror}): correct the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named} is not text in UTF-8: give a YAML file.") from error
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds {show(values)}"
        raise ConfigError(f"{path} {found}: it must hold sections, such as run and model.")
    # A section whose keys are all commented out is null in YAML and counts as absent.
    return {key: value for key, value in values.items() if value is not None}


def _parents(extends: Any, path: Path) -> list[Path]:
    names = extends if isinstance(extends, list) else [] if extends is None else [extends]
    if not all(isinstance(name, str) and name.isprintable() and len(name) <= 1000 for name in names):
        raise ConfigError(f"{path}: extends is {show(extends)}, but it must be the path of a file or a list of paths.")
    return [path.parent / name for name in names]


def _merge(base: dict[str, Any], top: dict[str, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    if at in _CHOICES and UNION_KEY in top and base.get(UNION_KEY, top[UNION_KEY]) != top[UNION_KEY]:
        return dict(top)
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value, (*at, key)) if both else value
    return merged


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    # All overrides become one tree first, so that `algorithm.loss.name` may come before or after the keys of that loss.
    values: dict[str, Any] = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise ConfigError(
                f"the override {show(override)} does not have the form section.key=value: write it that way."
            )
        value = parse_yaml(text, source=f"the value of the override {show(override)}")
        for key in reversed(keys):
            value = {key: value}
        values = _merge(values, value)
    return values
