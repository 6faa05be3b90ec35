"""docs/settings.md is what the schema renders, and lists every setting once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from megacov.config.controller import TargetPoint
from megacov.config.data import DataSource
from megacov.config.fields import walk_values
from megacov.config.schema import RunConfig
from megacov.config.settings_page import render_page

ROOT = Path(__file__).parents[3]


def test_the_page_of_the_docs_is_up_to_date() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == render_page(), "run: .venv/bin/python -m megacov.config.settings_page > docs/settings.md"


def test_every_setting_is_listed_under_its_section_with_a_default() -> None:
    listed: Counter[str] = Counter()
    section = ""
    for line in render_page().splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ").partition(" with name: ")[0]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace("\\|", "/").split("|")[1:-1]]
            assert len(cells) == 4 and all(cells), line
            listed[f"{section}.{cells[0].strip('`')}"] += 1
    settings = Counter(place.path for place in walk_values(RunConfig))
    for path, section in (("data.sources", DataSource), ("algorithm.controller.target_schedule", TargetPoint)):
        for _ in range(settings[path]):  # entries of a list, which several forms of a section may have
            settings.update(place.path for place in walk_values(section, f"{path}."))
    forms = {path for path, number in settings.items() if path.endswith(".name") and number > 1}
    assert {path for path in settings if path not in forms} == set(listed) - forms
    assert all(listed[path] == number for path, number in settings.items() if path not in forms)
