"""The last lines of a run name what is there, with commands that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.cli.main import app
from megacov.config import RunConfig, load_config
from megacov.trainer.where import where_everything_is

TINY = "yaml_configs/runs/tiny_grpo.yaml"


def _config(folder: Path, *overrides: str) -> RunConfig:
    return load_config(TINY, (f"run.directory={folder}", "checkpoint.every=2", *overrides))


def test_a_run_folder_that_was_renamed_is_named_as_it_is_now(tmp_path: Path):
    before, after = tmp_path / "before", tmp_path / "after"
    first, *others = where_everything_is(_config(before), after)
    assert f"everything is in {after}, but samples and metrics since it got that name are in {before}" in first
    assert any(f"megacov export {after} OUT" in line for line in others)
    assert not any(str(before) in line for line in others)


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ((), ()),
        (("checkpoint.every=0",), ("checkpoint ", "export")),
        (("monitor.samples_per_step=0",), ("megacov samples ",)),
        (("run.steps=39", "monitor.log_every=2"), ("megacov predict ",)),
    ],
)
def test_at_most_eight_lines_name_only_what_is_there(
    tmp_path: Path, overrides: tuple[str, ...], missing: tuple[str, ...]
):
    folder = tmp_path / "my run"
    lines = where_everything_is(_config(folder, *overrides), folder)
    assert len(lines) <= 8
    text = "\n".join(lines)
    shown = ("megacov samples ", "megacov report ", "megacov predict ", "megacov compare ", "tensorboard --logdir")
    for words in ("checkpoint ", "export", *shown):
        assert (words in text) == (words not in missing), text
    assert f"'{folder}/tensorboard'" in text, "a folder with a space can be pasted into a shell"
    verbs = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    assert {"export", "samples", "report", "predict", "compare"} <= verbs
