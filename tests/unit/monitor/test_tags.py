"""The table of tags is complete and consistent, and docs/metrics.md is what it renders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megacov.losses import get_loss
from megacov.monitor.tags import TAGS, render_markdown
from megacov.types import LossBatch
from tests.support.losses import suite_cases

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_of_the_docs_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_markdown(), (
        "run: .venv/bin/python -m megacov.monitor.tags > docs/metrics.md"
    )


def test_every_tag_is_on_the_page_once():
    page = render_markdown()
    for name in TAGS:
        assert page.count(f"| `{name}` |") == 1, name
    assert page.count("\n| `") == len(TAGS)


def test_every_tag_has_a_section_a_sentence_and_a_unit():
    for tag in TAGS.values():
        section, _, metric = tag.name.partition("/")
        assert section
        assert metric
        assert tag.meaning.endswith("."), tag.name
        assert tag.unit, tag.name


@pytest.mark.parametrize(("name", "hyperparameters"), suite_cases())
def test_every_metric_of_every_loss_has_a_tag(name, hyperparameters):
    zeros = torch.zeros(1)
    mask = torch.ones(1, dtype=torch.bool)
    batch = LossBatch(
        zeros,
        zeros,
        zeros,
        mask,
        zeros,
        selected=mask,
        sequence_log_ratio=zeros,
        sequence_tokens=zeros + 1,
        entropy=zeros,
        old_entropy=zeros,
        filtered_old_log_probs=zeros,
    )
    for metric in get_loss(name)(batch, **hyperparameters).metrics:
        assert TAGS[f"policy/{metric}"].denominator == "tokens"


def test_reading_a_run_back_needs_no_torch():
    code = "import sys, megacov.monitor.compare, megacov.monitor.status_file; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
