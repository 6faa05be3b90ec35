"""docs/data.md: its example is a file that is read, and the settings that it names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from megacov.config.fields import walk_values
from megacov.config.schema import DataSection, RunConfig
from megacov.data import load_prompts
from megacov.rewards.signature import BY_NAME, wanted_values

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_example_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "prompts.jsonl"
    path.write_text(example, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "tiny_policy")
    prompts = load_prompts(path, tokenizer, vocab_size=16)
    assert [prompt.answer for prompt in prompts] == ["137", "144"]


def test_the_page_names_settings_that_exist_and_every_one_of_data() -> None:
    known = {place.path for place in walk_values(RunConfig)} | {f"data.{key}" for key in DataSection.model_fields}
    named = set(re.findall(r"\b((?:data|rollout|run|model|rewards)\.[a-z_]+)\b", PAGE))
    assert named <= known, named - known
    assert {f"data.{key}" for key in DataSection.model_fields} <= named


def test_the_verifier_of_the_page_is_one() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - text of our own docs
    assert wanted_values(names["verify"], "verify").names == ("text", "answer", "row", "finish_reason")
    assert names["verify"](" 137\n", "137", row={}, finish_reason="stop") == 1.0
    assert all(f"`{name}`" in PAGE for name in BY_NAME)
