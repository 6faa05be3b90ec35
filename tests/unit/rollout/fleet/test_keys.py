"""Keys from a file that only its owner may read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megacov.errors import ConfigError
from megacov.rollout.fleet.keys import ServerKeys, read_keys


def file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("api-key: one\nadmin-api-key: two\n", ServerKeys("one", "two")),
        ("api-key: '0123'\n", ServerKeys("0123", None)),
        ('{"admin-api-key": "two", "model-path": "x"}', ServerKeys(None, "two")),
    ],
)
def test_keys_are_read(text, keys, tmp_path):
    assert read_keys(file(tmp_path, text)) == keys
    assert "two" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no mapping"),
        ("[a]", "is no mapping"),
        ("{}", "neither api-key nor admin-api-key"),
        ("api-key: 123", "api-key is no text"),
        ("api-key: 'two words'", "api-key is no text"),
        ("admin-api-key: [a]", "admin-api-key is no text"),
        ("api-key: {", "correct the YAML"),
    ],
)
def test_a_file_without_keys_is_refused(text, sentence, tmp_path):
    with pytest.raises(ConfigError, match=f"rollout.keys_file .*keys.yaml.*{sentence}"):
        read_keys(file(tmp_path, text))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o601])
def test_a_file_that_others_may_read_or_write_is_refused(mode, tmp_path):
    with pytest.raises(ConfigError, match=f"has mode {mode:04o}, .*: run chmod 600"):
        read_keys(file(tmp_path, "api-key: one", mode))


def test_a_file_of_somebody_else_is_refused(tmp_path, monkeypatch):
    path = file(tmp_path, "api-key: one")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        read_keys(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="gone.yaml cannot be read: No such file"):
        read_keys(tmp_path / "gone.yaml")
