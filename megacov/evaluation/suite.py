"""Reads a suite of evaluation sets from a YAML file.

`defaults` of the file holds settings that all of its sets share; a set's own settings win.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megacov.config.messages import first_sentence, show
from megacov.config.suite import EvaluationSet, SuiteSection
from megacov.config.yaml_text import read_yaml
from megacov.errors import ConfigError

SUITES = Path("yaml_configs/suites")


def find_suite(name: str) -> Path:
    """Find the file of a suite.

    Args:
        name: path of a YAML file, or the name of one in yaml_configs/suites, such as "paper".

    Returns:
        Its path.

    Raises:
        ConfigError: there is no such suite.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    folders = (SUITES, Path(__file__).parents[2] / SUITES)
    found = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    if found is None:
        known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
        raise ConfigError(
            f"there is no suite {show(name)}: give a YAML file{', or one of ' if known else ''}{', '.join(known)}."
        )
    return found


def load_suite(path: Path) -> SuiteSection:
    """Read a suite.

    Args:
        path: YAML file.

    Returns:
        The suite, checked.

    Raises:
        ConfigError: the file is missing or is not YAML, a key is unknown, a value is impossible, or two values
            contradict each other.
    """
    values = _read(path)
    defaults, sets = values.pop("defaults", None) or {}, values.pop("sets", None)
    if not isinstance(sets, list) or not sets:
        raise ConfigError(f"{path}: sets must be a list of sets that is not empty, but it is {show(sets)}.")
    if not isinstance(defaults, dict):
        raise ConfigError(f"{path}: defaults is {show(defaults)}, but it must be a section with settings of a set.")
    checked = tuple(_read_set(each, defaults, path=path, number=number) for number, each in enumerate(sets, start=1))
    try:
        return SuiteSection.model_validate({**values, "sets": checked})
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_sentence(error, SuiteSection)}") from None


def settings_digest(section: SuiteSection | EvaluationSet) -> str:
    """SHA-256 of all settings, defaults included, as hexadecimal digits."""
    values = section.model_dump(mode="json")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path, source=str(path))
    except OSError as error:
        raise ConfigError(f"the suite {path} cannot be read ({error.strerror}): correct the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the suite {path} is not text in UTF-8: give a YAML file.") from error
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds {show(values)}"
        raise ConfigError(f"the suite {path} {found}: it must hold name and sets.")
    return values


def _read_set(values: Any, defaults: Mapping[str, Any], *, path: Path, number: int) -> EvaluationSet:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}, set {number} is {show(values)}: it must be a section with name, path and verifier.")
    try:
        return EvaluationSet.model_validate({**defaults, **values})
    except ValidationError as error:
        # "from None", because pydantic's own message repeats the same in many lines.
        sentence = first_sentence(error, EvaluationSet)
        raise ConfigError(f"{path}, set {number} ({show(values.get('name'))}): {sentence}") from None
