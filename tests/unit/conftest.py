"""Tiny model folders, made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.tiny_model import make_tiny_model

if TYPE_CHECKING:
    from megacov.embedded_server.model import ServedModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory) -> Path:
    """The same model with other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def served(model_folder) -> ServedModel:
    from megacov.embedded_server.model import load_model  # brings torch, which most unit tests do without

    return load_model(model_folder, dtype="float32")
