"""From YAML files and overrides to one checked configuration, and back to YAML.

A file may extend others: `extends: ../models/tiny.yaml`, or a list. Later files win over earlier ones, a file wins over
those that it extends, and overrides (`optimizer.lr=3e-4`) win over all. Mappings are merged key by key; lists are
replaced. A loss or a selection with another `name` replaces the whole section, because the other keys belong to the
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megacov.config.fields import UNION_KEY, choice_paths
from megacov.config.messages import first_sentence, show
from megacov.config.rules import check_rules
from megacov.config.schema import RunConfig
from megacov.config.yaml_text import dump_yaml, parse_yaml
from megacov.errors import ConfigError

_CHOICES = choice_paths(RunConfig)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        path: a YAML file.
        overrides: texts of the form `section.key=value`, whose value is read as YAML. Later overrides win.

    Returns:
        The configuration, checked by every rule that needs no model.

    Raises:
        ConfigError: a file is missing or is not YAML, a key is unknown, a value is impossible, or two values
            contradict each other.
    """
    values = _read_with_parents(Path(path), chain=())
    return make_config(_merge(values, _parse_overrides(overrides)))


def config_files(path: Path) -> list[Path]:
    """A configuration file that can be read, and all files that it extends, directly or not."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file.resolve() not in found:
            found[file.resolve()] = None
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
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        # "from None", because pydantic's own message repeats the same in many lines.
        raise ConfigError(first_sentence(error, RunConfig)) from None
    check_rules(config)
    return config


def dump_config(config: RunConfig) -> str:
    """Write a configuration with every setting spelt out, as YAML that loads to an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def _read_with_parents(path: Path, *, chain: tuple[Path, ...]) -> dict[str, Any]:
    own = _read_file(path, extended_by=chain[-1] if chain else None)
    here = path.resolve()
    if here in (file.resolve() for file in chain):
        loop = " -> ".join(str(file) for file in (*chain, path))
        raise ConfigError(f"these files extend each other in a circle: {loop}; remove one `extends`.")
    values: dict[str, Any] = {}
    for parent in _parents(own.pop("extends", None), path):
        values = _merge(values, _read_with_parents(parent, chain=(*chain, path)))
    return _merge(values, own)


def _read_file(path: Path, *, extended_by: Path | None) -> dict[str, Any]:
    named = f"{extended_by} extends {path}, which" if extended_by else f"the configuration file {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{named} cannot be read ({error.strerror}): correct the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named} is not text in UTF-8: give a YAML file.") from error
    values = parse_yaml(text, source=str(path))
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds {show(values)}"
        raise ConfigError(f"{path} {found}: it must hold sections, such as run and model.")
    # A section whose keys are all commented out is null in YAML and counts as absent.
    return {key: value for key, value in values.items() if value is not None}


def _parents(extends: Any, path: Path) -> list[Path]:
    names = extends if isinstance(extends, list) else [] if extends is None else [extends]
    if not all(isinstance(name, str) for name in names):
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
        if not equals or not all(keys):
            raise ConfigError(f"the override {override!r} does not have the form section.key=value: write it that way.")
        value = parse_yaml(text, source=f"the value of the override {override!r}")
        for key in reversed(keys):
            value = {key: value}
        values = _merge(values, value)
    return values
