"""The table of tags is complete and consistent, and docs/metrics.md is what it renders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacov.losses import get_loss
from megacov.monitor.tags import TAGS, render_markdown
from megacov.types import LossBatch

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


@pytest.mark.parametrize(
    ("name", "hyperparameters"), [("ppo_clip", {"dual_clip": 3.0}), ("clip_cov", {"dual_clip": 3.0}), ("kl_cov", {})]
)
def test_every_metric_of_every_loss_is_declared(name, hyperparameters):
    zeros = torch.zeros(1)
    mask = torch.ones(1, dtype=torch.bool)
    batch = LossBatch(zeros, zeros, zeros, mask, zeros, selected=mask)
    for metric in get_loss(name)(batch, **hyperparameters).metrics:
        assert TAGS[f"policy/{metric}"].denominator == "tokens"
