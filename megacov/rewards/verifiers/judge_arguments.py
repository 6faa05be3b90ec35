"""Looks at the arguments of the verifier `judge` before anything asks a server."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from megacov.config.addresses import is_ip_address, refuse_public
from megacov.errors import ConfigError

_LARGEST = sys.float_info.max  # a whole number beyond it has no float, and neither NaN nor infinity is below it
_TEXTS = {"rubric": "what to grade by", "template": "the message to the judge", "pattern": "a regular expression"}
_NAMES = {"rubric_field": "a field of the data", "key_variable": "an environment variable", "key_file": "a file"}


def check_arguments(lowest: float = 1.0, highest: float = 10.0, **given: Any) -> None:
    """Look at the arguments that are given.

    Args:
        lowest: worst grade.
        highest: best grade.
        **given: the other arguments; `urls` and `model` must be among them.

    Raises:
        ConfigError: an argument cannot be used; the sentence begins with its name.
    """
    _check_server(given.get("urls"), given.get("model"))
    for name, meaning in _TEXTS.items():
        if not isinstance(given.get(name, ""), str):
            raise ConfigError(f"{name} is {given[name]!r}; set it to {meaning}, as text.")
    for name, meaning in _NAMES.items():
        if not (given.get(name) is None or (isinstance(given[name], str) and given[name])):
            raise ConfigError(f"{name} is {given[name]!r}; set it to the name of {meaning}, or to null.")
    if "{response}" not in given.get("template", "{response}"):
        raise ConfigError("template does not hold {response}, so that the judge would not see what to grade.")
    _check_pattern(given.get("pattern", "()"))
    _check_numbers(given)
    if not (_is_number(lowest) and _is_number(highest) and lowest < highest):
        raise ConfigError(f"lowest is {lowest!r} and highest is {highest!r}; lowest must be the smaller number.")
    body = given.get("body")
    if not (body is None or isinstance(body, Mapping)):
        raise ConfigError(f"body is {body!r}; set it to a mapping of fields of the request, or to null.")


def _check_server(urls: Any, model: Any) -> None:
    if not isinstance(urls, list | tuple) or not urls:
        raise ConfigError("urls must be a list of base URLs, as in [http://node3:30000/v1].")
    for url in urls:
        _check_url(url)
    if not isinstance(model, str) or not model:
        raise ConfigError(f"model is {model!r}; set it to the name of the judge's model.")


def _check_url(url: Any) -> None:
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
    except ValueError:  # as for brackets that hold no address
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ConfigError(f"urls holds {url!r}, which is no base URL; write it as in http://node3:30000/v1.")
    if is_ip_address(parts.hostname):
        try:
            refuse_public(parts.hostname, url=url)
        except ValueError as error:
            raise ConfigError(f"urls: {error}") from error


def _check_pattern(pattern: str) -> None:
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"pattern is no regular expression ({error}); correct it.") from error
    if num_groups < 1:
        raise ConfigError(f"pattern is {pattern!r}, without a group; put ( ) around the grade.")


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name, least in (("max_tokens", 1), ("retries", 0)):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; set it to a whole number from {least}.")
    total_s, temperature = given.get("total_s", 1.0), given.get("temperature", 0.0)
    if not _is_number(total_s) or total_s <= 0:
        raise ConfigError(f"total_s is {total_s!r}; set it to a number of seconds above 0.")
    if not _is_number(temperature) or temperature < 0:
        raise ConfigError(f"temperature is {temperature!r}; set it to a number from 0.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
