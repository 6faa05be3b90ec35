"""Settings of the data: one path or several, and texts around a question that have a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megacov.config import RunConfig, dump_config, editor_schema, load_config, make_config, make_data_config
from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError

TINY = "yaml_configs/runs/tiny_grpo.yaml"
PRESETS = {
    "dapo_math": ("prompt", "reward_model.ground_truth", "plain"),
    "gsm8k": ("question", "answer", "gsm8k"),
    "math": ("problem", "solution", "boxed"),
}


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a.jsonl", ("a.jsonl",)),
        ("[a.jsonl, s3://b/c.parquet]", ("a.jsonl", "s3://b/c.parquet")),
        ("hf:org/name", ("hf:org/name",)),
    ],
)
def test_a_path_or_a_list_of_them_is_read_and_written_back(text: str, paths: tuple[str, ...]) -> None:
    config = load_config(TINY, [f"data.path={text}"])
    assert config.data.path == paths
    dumped = parse_yaml(dump_config(config), source="dump")
    assert dumped["data"]["path"] == (paths[0] if len(paths) == 1 else list(paths))
    assert make_config(dumped) == config == RunConfig.model_validate_json(config.model_dump_json())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.path=3", "data.path is 3: it must be a path or an address, or a list of them, or null"),
        ("data.path=[]", r"data.path is \[\]: it must be a path or an address"),
        ("data.path=''", "data.path.* must be"),
        ("data.path=[a, 3]", r"data.path\[1\] is 3: it must be text"),
        ("data.instruction=Box it.", r"data: instruction has no \{prompt\}, where the question stands"),
        ("data.system_prompt=Think.", "system_prompt is set and chat_template is false, which knows no messages"),
        ("data.sources=[{name: a, path: a, instruction: x}]", r"sources\[0\].instruction has no \{prompt\}"),
        ("data.sources=[{name: a, path: a, system_prompt: x}]", r"sources\[0\].system_prompt is set and chat_template"),
        ("data.too_long=cut", "data.too_long is 'cut': it must be drop or refuse"),
        ("data.answer_format=latex", "it must be plain, gsm8k or boxed"),
    ],
)
def test_what_cannot_be_is_one_sentence(override: str, words: str) -> None:
    without = ["data.path=null"] if "sources" in override else []
    with pytest.raises(ConfigError, match=words):
        load_config(TINY, [override, *without])
    load_config(TINY, ["data.chat_template=true", "data.system_prompt=Think.", "data.instruction='{prompt}!'"])


def test_editors_take_a_path_and_a_list_of_paths() -> None:
    forms: list[dict[str, Any]] = editor_schema()["$defs"]["DataSection"]["properties"]["path"]["anyOf"]
    assert {form.get("type") for each in forms for form in each.get("anyOf", [each])} == {"string", "array", "null"}


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_names_columns_only(name: str, tmp_path: Path) -> None:
    preset = Path("yaml_configs/data", f"{name}.yaml").resolve()
    run = tmp_path / "run.yaml"
    run.write_text(f"extends: [{Path(TINY).resolve()}, {preset}]\n")
    data, plain = load_config(run).data, load_config(TINY).data
    assert (data.prompt_field, data.answer_field, data.answer_format) == PRESETS[name]
    columns = {"prompt_field", "answer_field", "answer_format"}
    assert data.model_dump(exclude=columns) == plain.model_dump(exclude=columns)
    assert {each.stem for each in preset.parent.iterdir()} == set(PRESETS)


def test_a_configuration_of_data_alone() -> None:
    config = make_data_config("a.jsonl", ["data.prompt_field=question", "data.max_prompt_length=7"])
    assert (config.data.path, config.data.prompt_field, config.data.max_prompt_length) == (("a.jsonl",), "question", 7)
