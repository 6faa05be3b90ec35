"""docs/evaluation.md has every setting, with its default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from megacov.config.suite import EvaluationSet, SuiteSection

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()


def row(name: str, field: FieldInfo) -> str:
    """The line of a setting."""
    default: Any = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
    return f"| `{name}` | {default} | {' '.join((field.description or '').split())} |"


@pytest.mark.parametrize("name", list(EvaluationSet.model_fields))
def test_a_setting_of_a_set_is_described(name):
    assert row(name, EvaluationSet.model_fields[name]) in PAGE.splitlines()


@pytest.mark.parametrize("name", list(SuiteSection.model_fields))
def test_a_setting_of_the_suite_is_named(name):
    assert f"`{name}`" in PAGE
