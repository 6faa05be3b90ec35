"""docs/losses.md is what the losses render, and says everything of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.config.losses import LOSS_SECTIONS
from megacov.losses import LOSSES
from megacov.monitor.loss_page import render_page

ROOT = Path(__file__).parents[3]


def test_the_page_of_the_docs_is_up_to_date():
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert page == render_page(), "run: .venv/bin/python -m megacov.monitor.loss_page > docs/losses.md"


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_whole(name):
    section = render_page().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "loss" in section
    assert "arXiv" in section or "http" in section, "a loss names its source"
    for word in [*LOSSES[name].metrics, *LOSS_SECTIONS[name].model_fields.keys() - {"name"}]:
        assert section.count(f"| `{word}` |") == 1, word


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ppo_clip"])
def test_each_loss_has_a_file_of_published_values(name):
    assert (ROOT / "yaml_configs" / "algorithms" / f"{name}.yaml").is_file()
