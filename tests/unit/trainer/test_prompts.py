"""The files of a run's prompts: checked, mounted, made absolute, hashed, and read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import fsspec
import pytest

from megacov.checkpoint.manifest import record_file
from megacov.cli.checks import Subject, find_remarks
from megacov.cli.deep import look_deeper
from megacov.cli.deep_check import look
from megacov.cli.launch import make_job
from megacov.config import RunConfig, load_config
from megacov.config.resume import contradictions
from megacov.data import load_tokenizer
from megacov.launch.site import Site
from megacov.trainer.prompts import hash_files, load_sources, paths_of
from megacov.trainer.run_folder import with_absolute_paths

ROOT = Path(__file__).parents[3]
TINY = ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def written(path: Path, *texts: str, field: str = "prompt") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: text, "answer": "3"}) + "\n" for text in texts))
    return path


def config_of(*overrides: str) -> RunConfig:
    return load_config(TINY, overrides)


def two_sources(folder: Path) -> RunConfig:
    written(folder / "one" / "b.jsonl", "1=")
    written(folder / "one" / "a.jsonl", "2=", "3=")
    written(folder / "two.jsonl", "4=", field="question")
    sources = [
        {"name": "first", "path": str(folder / "one")},
        {"name": "second", "path": [str(folder / "two.jsonl")], "prompt_field": "question", "instruction": "{prompt}="},
    ]
    return config_of("data.path=null", f"data.sources={json.dumps(sources)}")


def test_sources_are_read_with_their_own_settings_and_one_count(tmp_path: Path) -> None:
    config = two_sources(tmp_path)
    prompts = load_sources(config, load_tokenizer(config.model.path, vocab_size=16), vocab_size=16)
    assert [(each.index, each.source, each.text) for each in prompts] == [
        (0, 0, "2="),
        (1, 0, "3="),
        (2, 0, "1="),
        (3, 1, "4=="),
    ]
    assert prompts.place_of(2) == f"{tmp_path}/one/b.jsonl, line 1"
    names = [Path(file.name).name for file in hash_files(config)]
    assert names == ["a.jsonl", "b.jsonl", "two.jsonl"]
    assert [name for name, _ in paths_of(config)] == ["data.sources first", "data.sources second"]


def test_a_run_of_one_file_has_the_digest_that_it_always_had(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "1=")
    (file,) = hash_files(config_of(f"data.path={path}"))
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == record_file(tmp_path, "a.jsonl").sha256


def test_local_paths_become_absolute_and_addresses_stay(tmp_path: Path) -> None:
    config = with_absolute_paths(config_of("data.path=[a.jsonl, 's3://b/c.jsonl', 'hf:org/name']"))
    assert config.data.path == (os.path.abspath("a.jsonl"), "s3://b/c.jsonl", "hf:org/name")
    evaluated = with_absolute_paths(config_of("data.path=a", "evaluation={suite: a.yaml, data: b}")).evaluation
    assert (evaluated.suite, evaluated.data) == (os.path.abspath("a.yaml"), Path("b").absolute())
    named = config_of("data.path=a", "evaluation.suite=paper")
    assert with_absolute_paths(named).evaluation.suite == "paper", "a name is no path"
    sources = config_of("data.path=null", "data.sources=[{name: a, path: [one, 'memory://b']}, {name: b, path: /c}]")
    paths = [source.path for source in with_absolute_paths(sources).data.sources]
    assert paths == [(os.path.abspath("one"), "memory://b"), ("/c",)]
    moved, other = two_sources(tmp_path), two_sources(tmp_path / "elsewhere")
    assert contradictions(moved.model_dump(mode="json"), other) == {}, "folders move"


def test_a_container_sees_the_files_of_all_sources(tmp_path: Path) -> None:
    site = Site(container="pyxis", image="a.sqsh")
    config = two_sources(tmp_path)
    more = f"['{tmp_path}/wild/deep*/x-*.parquet', 's3://b/c.jsonl', /data/all.jsonl]"
    for run, expected in ((config, {f"{tmp_path}"}), (config_of(f"data.path={more}"), {f"{tmp_path}/wild", "/data"})):
        job = make_job(run, TINY, [], site)
        assert expected <= {mount.partition(":")[0] for mount in job.site.mounts.split(",")}


def found_by(verb: str, *overrides: str, is_deep: bool = False) -> list[tuple[str, str]]:
    subject = Subject(config_of(*overrides), verb, is_deep=is_deep)  # type: ignore[arg-type]
    return [
        (each.severity, each.sentence)
        for each in find_remarks(subject)
        if "data.path is" in each.sentence or "//" in each.sentence
    ]


def test_every_path_is_checked(tmp_path: Path) -> None:
    good, empty = written(tmp_path / "a.jsonl", *("1=" for _ in range(9))), written(tmp_path / "b.jsonl")
    assert found_by("train", f"data.path=[{good}, {empty}]") == [
        ("impossible", f"data.path is {empty}, which is empty.")
    ]
    (tmp_path / "folder").mkdir()
    ((severity, sentence),) = found_by("train", f"data.path={tmp_path / 'folder'}")
    assert severity == "impossible" and "a folder without a file that ends in .jsonl" in sentence
    ((severity, sentence),) = found_by("train", f"data.path={tmp_path}/none-*.jsonl")
    assert severity == "impossible" and "there is no such file" in sentence
    address = ("not looked at", "data.path s3://b/c.jsonl is not on this machine's disks.")
    assert address in found_by("check", "data.path='s3://b/c.jsonl'")
    assert found_by("train", f"data.path=[{tmp_path}/a*.jsonl]") == []


def test_a_deep_check_reads_addresses_and_counts_what_is_left_out() -> None:
    (warning,) = look_deeper(config_of("data.max_prompt_length=3"))
    assert warning.severity == "warning"
    words = "100 of 190 prompts have more than data.max_prompt_length = 3 tokens, the first in "
    assert warning.sentence.startswith(words) and warning.sentence.endswith("the longest has 4; 100 are left out.")
    for override, words in (
        ("data.too_long=refuse", "100 of 190 prompts have more than .* raise it to 4 or remove them"),
        ("data.path=nosuch://b/a.jsonl", "Protocol not known: nosuch"),
    ):
        reports = look(config_of("data.max_prompt_length=3", override), ["files"])
        (refused,) = [report for report in reports if "sentence" in report]
        assert refused["kind"] == "DataError" and re.search(words, str(refused["sentence"]))


def test_prompts_come_from_an_address() -> None:
    content = (ROOT / "examples" / "sum_pairs" / "prompts.jsonl").read_bytes()
    fsspec.filesystem("memory").pipe_file("/megacov-run/prompts.jsonl", content)
    config, local = config_of("data.path=memory://megacov-run/prompts.jsonl"), config_of()
    tokenizer = load_tokenizer(config.model.path, vocab_size=16)
    assert list(load_sources(config, tokenizer, vocab_size=16)) == list(load_sources(local, tokenizer, vocab_size=16))
    assert hash_files(config)[0].sha256 == hash_files(local)[0].sha256
