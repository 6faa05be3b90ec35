"""Settings of one cluster, from a file of `NAME=value` lines such as those in slurm/sites."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megacov.config.messages import show
from megacov.config.secret_values import is_secret, is_secret_value
from megacov.errors import ConfigError, DataError

_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_PREFIX = "MEGACOV_"
_SETTINGS = ("PARTITION", "ACCOUNT", "QOS", "MODULES", "CONTAINER", "IMAGE", "MOUNTS", "PYTHON")
_CONTAINERS = ("", "pyxis", "apptainer")


@dataclass(frozen=True)
class Site:
    """A cluster; an empty text leaves a setting alone.

    modules: environment modules that the job loads.
    container: pyxis, apptainer or neither.
    image, mounts: image and mounts of the container.
    python: interpreter that runs the trainer.
    environment: variables that the job exports.
    left_out: a sentence for each variable that looks like a secret, which the job script must not hold.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    modules: tuple[str, ...] = ()
    container: str = ""
    image: str = ""
    mounts: str = ""
    python: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read_site(path: Path) -> Site:
    """Read a site file.

    Args:
        path: the site file.

    Returns:
        The site.

    Raises:
        DataError: the file cannot be read.
        ConfigError: a line is not `NAME=value`, or a setting is unknown, wrong, or holds a secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--site {path} cannot be read: {getattr(error, 'strerror', None) or 'it is not a text file'}."
        ) from error
    settings: dict[str, str] = {}
    environment: dict[str, str] = {}
    left_out: list[str] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            # The rest of the line may be a secret.
            raise ConfigError(
                f"{path}, line {number}: {show(line.partition('=')[0])} does not begin as NAME=value does."
            )
        name, value = match[1], match[2].strip()
        if name.startswith(_PREFIX):
            settings[_setting(name, value, where=f"{path}, line {number}")] = value
        elif is_secret(name, value):
            left_out.append(
                f"{path}, line {number}: {name} looks like a secret and stays out of the job script, which others can "
                "read: export it in the shell that runs `megacov launch`, whose environment the job inherits."
            )
        else:
            environment[name] = value
    modules = tuple(settings.pop("modules", "").split())
    site = Site(**settings, modules=modules, environment=environment, left_out=tuple(left_out))
    if bool(site.container) != bool(site.image):
        raise ConfigError(
            f"{path}: MEGACOV_CONTAINER is {site.container or 'not set'} and MEGACOV_IMAGE is "
            f"{site.image or 'not set'}: set both or neither."
        )
    return site


def _setting(name: str, value: str, *, where: str) -> str:
    plain = name.removeprefix(_PREFIX)
    if plain not in _SETTINGS:
        known = ", ".join(_PREFIX + each for each in _SETTINGS)
        raise ConfigError(f"{where}: there is no setting {name[:60]}; there are {known}.")
    if is_secret_value(value):
        raise ConfigError(
            f"{where}: {name} holds what looks like a secret, and would be written into the job script: remove it, and "
            "log in where the job runs, as with a credentials file of enroot or Apptainer."
        )
    if plain == "CONTAINER" and value not in _CONTAINERS:
        raise ConfigError(f"{where}: MEGACOV_CONTAINER is {value[:60]}: set pyxis or apptainer, or remove it.")
    if plain in ("PARTITION", "ACCOUNT", "QOS") and not re.fullmatch(r"[A-Za-z0-9._,-]+", value):
        raise ConfigError(
            f"{where}: {name} is {show(value)}, and SLURM's names consist of letters, digits, dots and dashes."
        )
    return plain.lower()
