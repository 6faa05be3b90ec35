"""The last lines of a run name what is there, with commands that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.cli.main import app
from megacov.config import load_config
from megacov.trainer.where import where_everything_is

TINY = "yaml_configs/runs/tiny_grpo.yaml"


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ((), ()),
        (("checkpoint.every=0",), ("checkpoint ", "export")),
        (("monitor.samples_per_step=0",), ("samples ",)),
    ],
)
def test_at_most_six_lines_name_only_what_is_there(
    tmp_path: Path, overrides: tuple[str, ...], missing: tuple[str, ...]
):
    folder = tmp_path / "my run"
    lines = where_everything_is(load_config(TINY, (f"run.directory={folder}", "checkpoint.every=2", *overrides)))
    assert len(lines) <= 6
    text = "\n".join(lines)
    for words in ("checkpoint ", "export", "samples ", "tensorboard --logdir", "compare"):
        assert (words in text) == (words not in missing), text
    assert f"'{folder}/tensorboard'" in text, "a folder with a space can be pasted into a shell"
    verbs = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    assert {"export", "compare"} <= verbs
