"""With which configuration, model folder and number of steps a run may continue from a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megacov.config import RunConfig, load_config
from megacov.errors import ConfigError
from megacov.trainer.saving.continuation import check_continuation

FILES = {
    "model.weights": "w",
    "model.tokenizer": {"tokenizer.json": "t", "tokenizer_config.json": "c"},
    "model.chat_template": "j",
    "model.generation": "g",
}
PROMPTS = [{"name": "/a.jsonl", "sha256": "1"}, {"name": "/b.jsonl", "sha256": "2"}]
ABOUT = {
    "shape": {"num_layers": 2, "rope": (1.0, 0.5)},
    "prompts_sha256": "abc",
    "model_files": FILES,
    "prompt_files": PROMPTS,
}


def _config(folder: Path, *overrides: str) -> RunConfig:
    return load_config("yaml_configs/runs/tiny_grpo.yaml", [f"run.directory={folder}", *overrides])


def _saved(folder: Path) -> dict[str, Any]:
    return {"step": 2, "config": _config(folder).model_dump(mode="json"), **json.loads(json.dumps(ABOUT))}


def test_what_is_allowed_once_stays_allowed_with_its_value(tmp_path: Path) -> None:
    saved = _saved(tmp_path)
    check_continuation(saved, _config(tmp_path, "run.steps=200", "parallel.data=4"), ABOUT)
    changed = _config(tmp_path, "optimizer.lr=1e-5")
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.0003 and is 1e-05"):
        check_continuation(saved, changed, ABOUT)
    check_continuation(saved, changed, ABOUT, allowed=["optimizer.lr"])
    check_continuation(saved, changed, ABOUT)
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.0003 and is 2e-05"):
        check_continuation(saved, _config(tmp_path, "optimizer.lr=2e-5"), ABOUT)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [("{}", "{thinks: false}", "was null and is false"), ("{thinks: false}", "{}", "was false and is null")],
)
def test_a_value_in_a_mapping_that_was_or_is_empty_can_be_allowed(
    before: str, after: str, words: str, tmp_path: Path
) -> None:
    was, now = (
        _config(tmp_path, "data.chat_template=true", f"data.chat_template_kwargs={each}") for each in (before, after)
    )
    saved = {**_saved(tmp_path), "config": was.model_dump(mode="json")}
    name = "data.chat_template_kwargs.thinks"
    with pytest.raises(ConfigError, match=rf"of step 2: {re.escape(name)} {words}: "):
        check_continuation(saved, now, ABOUT)
    check_continuation(saved, now, ABOUT, allowed=[name])
    check_continuation(saved, now, ABOUT)


def test_another_model_or_other_prompts_are_refused(tmp_path: Path) -> None:
    saved = _saved(tmp_path)
    with pytest.raises(ConfigError, match="num_layers 2, model.path has num_layers 3"):
        check_continuation(saved, _config(tmp_path), {**ABOUT, "shape": {**ABOUT["shape"], "num_layers": 3}})
    for files, words in (
        ([PROMPTS[0], {"name": "/new/b.jsonl", "sha256": "3"}], "data.path: /new/b.jsonl holds other prompts than"),
        (PROMPTS[:1], "data.path has 1 files of prompts, and the run was trained on 2"),
        (PROMPTS[::-1], "data.path has the files of prompts in another order, from /b.jsonl on"),
    ):
        now = {**ABOUT, "prompts_sha256": "other", "prompt_files": files}
        with pytest.raises(ConfigError, match=words):
            check_continuation(saved, _config(tmp_path), now)
    older = {name: value for name, value in saved.items() if name != "prompt_files"}
    check_continuation(older, _config(tmp_path), ABOUT)
    with pytest.raises(ConfigError, match="data.path: /b.jsonl, /a.jsonl holds other prompts"):
        check_continuation(older, _config(tmp_path), now)
    check_continuation(saved, _config(tmp_path), now, allowed=["data.path"])
    check_continuation(saved, _config(tmp_path), now)
    with pytest.raises(ConfigError, match="has the files of prompts in another order"):
        check_continuation(saved, _config(tmp_path), {**now, "prompts_sha256": "a third"})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("model.weights", "other", "holds other weights than those the run began with"),
        ("model.tokenizer", {"tokenizer.json": "other", "tokenizer_config.json": "c"}, "has another tokenizer.json:"),
        ("model.tokenizer", {"tokenizer.json": "t"}, "has another tokenizer_config.json:"),
        ("model.chat_template", "other", "has another chat template"),
        ("model.generation", "other", "has other generation settings"),
    ],
)
def test_another_file_in_the_model_folder_is_refused_by_name_unless_allowed(
    name: str, value: object, sentence: str, tmp_path: Path
) -> None:
    config, saved = _config(tmp_path), _saved(tmp_path)
    now = {**ABOUT, "model_files": {**FILES, name: value}}
    with pytest.raises(ConfigError, match=f"{name}: model.path .* {sentence}"):
        check_continuation(saved, config, now)
    check_continuation(saved, config, now, allowed=[name])
    check_continuation(saved, config, now)  # the run folder remembers it


def test_a_checkpoint_of_a_version_without_digests_is_accepted_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = _saved(tmp_path)
    check_continuation(saved, _config(tmp_path), ABOUT)
    assert capsys.readouterr().out == ""
    del saved["model_files"]
    check_continuation(saved, _config(tmp_path), ABOUT)
    assert "step 2 is of an older version of megacov, which recorded nothing of the model" in capsys.readouterr().out


def test_digests_that_one_side_does_not_need_are_not_compared(tmp_path: Path) -> None:
    unused = {**FILES, "model.weights": None, "model.chat_template": None}
    check_continuation(_saved(tmp_path), _config(tmp_path), {**ABOUT, "model_files": unused})


def test_fewer_steps_than_are_done_are_refused_and_equally_many_are_not(tmp_path: Path) -> None:
    saved = {**_saved(tmp_path), "step": 6}
    with pytest.raises(ConfigError, match=r"run\.steps is 5, and .* has done 6 steps: set run\.steps higher"):
        check_continuation(saved, _config(tmp_path, "run.steps=5"), ABOUT)
    check_continuation(saved, _config(tmp_path, "run.steps=6"), ABOUT)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\0\0", "\xff"])
def test_a_damaged_record_of_what_was_allowed_is_a_sentence(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "allowed.json"
    path.write_bytes(content.encode("latin-1"))
    check_continuation(_saved(tmp_path), _config(tmp_path), ABOUT)
    assert f"{path} is damaged and is ignored: name again with --allow what may differ" in capsys.readouterr().out
    changed = _config(tmp_path, "optimizer.lr=1e-5")
    with pytest.raises(ConfigError, match=r"optimizer\.lr was"):
        check_continuation(_saved(tmp_path), changed, ABOUT)
    check_continuation(_saved(tmp_path), changed, ABOUT, allowed=["optimizer.lr"])
    assert json.loads(path.read_text()) == {"optimizer.lr": 1e-5}
