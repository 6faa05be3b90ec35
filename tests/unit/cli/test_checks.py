"""The checks that `check`, `launch` and `train` share: the same run is impossible for all of them, or for none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.checks import Remark, Subject, Verb, find_remarks
from megacov.cli.main import app
from megacov.config import load_config
from megacov.errors import ConfigError, DataError, MegacovError
from tests.support.policies import TINY_POLICY

ROOT = Path(__file__).parents[3]
TINY = "yaml_configs/runs/tiny_kl_cov.yaml"
LARGE = "yaml_configs/runs/qwen2.5_32b_kl_cov_8n.yaml"
NOWHERE = "rewards.verifier=nowhere.at_all:judge"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run_verb(verb: str, *overrides: str) -> tuple[BaseException | None, str]:
    """What a verb ends with, and what it prints. Nothing is submitted; nothing may be trained."""
    result = CliRunner().invoke(app, [verb, TINY, *overrides, *(["--dry-run"] if verb == "launch" else [])])
    return result.exception, result.output


def found_by(verb: Verb, *overrides: str, path: str = TINY, is_elsewhere: bool = False) -> list[Remark]:
    return find_remarks(Subject(load_config(path, overrides), verb, is_elsewhere=is_elsewhere))


def of_severity(found: list[Remark], severity: str) -> list[str]:
    return [remark.sentence for remark in found if remark.severity == severity]


def model_with(folder: Path, **changes: object) -> Path:
    """The tiny policy with another configuration."""
    shutil.copytree(TINY_POLICY, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


IMPOSSIBLE: dict[str, tuple[list[str], type[MegacovError], str]] = {
    "positions": (["model.path=<model>"], ConfigError, "is 16, and servers refuse more than 12 tokens"),
    "another_model": (
        ["model.config_file=yaml_configs/models/qwen2.5-32b/config.json"],
        ConfigError,
        "num_layers is 64 there and 2 in the folder",
    ),
    "own_verifier": (["rewards.verifier=sum_triples"], ConfigError, "there is no verifier 'sum_triples'"),
    "verifier_arguments": (
        ["rewards.verifier=gsm8k", "rewards.arguments={metod: strict}"],
        ConfigError,
        "rewards.arguments sets metod, and gsm8k takes method",
    ),
    "verifier_form": (["rewards.verifier=a:b:c"], ConfigError, "does not have the form package.module:function"),
    "server_number": (["rollout.server_arguments={tp-size: two}"], ConfigError, "tp-size is 'two'"),
    "fraction": (["rollout.server_arguments={mem-fraction-static: 80}"], ConfigError, "a fraction of a GPU's memory"),
    "memory": (["cluster.gpu_memory_gib=4.01"], ConfigError, "GPU of pipeline stage 0 needs"),
    "layout": (["parallel.tensor=3"], ConfigError, "parallel.tensor is 3"),
    "empty_data": (["data.path=<empty>"], DataError, "which is empty"),
    "model_without_config": (["model.path=tests"], DataError, "no config.json"),
    # As for a folder of somebody else, which tests that run as root cannot make.
    "unreadable_data": ([f"data.path={'a' * 300}"], DataError, "cannot be read: File name too long"),
    "unreadable_model": ([f"model.path={'a' * 300}"], DataError, "cannot be read: File name too long"),
    "no_suite": (["evaluation.suite=nowhere"], ConfigError, "there is no suite 'nowhere'"),
    "folder_of_something_else": (["run.directory=tests"], DataError, "holds no run of megacov"),
}


def fill(text: str, **paths: Path) -> str:
    for name, path in paths.items():
        text = text.replace(f"<{name}>", str(path))
    return text


@pytest.mark.parametrize("verb", ["check", "launch", "train"])
@pytest.mark.parametrize("name", list(IMPOSSIBLE))
def test_what_is_impossible_is_refused_by_all(name: str, verb: str, tmp_path: Path) -> None:
    overrides, kind, words = IMPOSSIBLE[name]
    model, empty = model_with(tmp_path / "model", max_position_embeddings=12), tmp_path / "empty.jsonl"
    empty.touch()
    values = [f"run.directory={tmp_path / 'run'}", *(fill(each, model=model, empty=empty) for each in overrides)]
    error, printed = run_verb(verb, *values)
    assert type(error) is kind and words in str(error), (error, printed)
    assert not (tmp_path / "run").exists()


def test_a_config_file_of_another_model_is_refused_even_if_only_one_size_differs(tmp_path: Path) -> None:
    other = model_with(tmp_path, vocab_size=17) / "config.json"
    (sentence,) = of_severity(found_by("train", f"model.config_file={other}"), "impossible")
    assert "vocab_size is 17 there and 16 in the folder" in sentence
    longer = model_with(tmp_path, max_position_embeddings=4096) / "config.json"
    assert not of_severity(found_by("train", f"model.config_file={longer}"), "impossible")


# For `train`, tests/end_to_end/test_failed_start.py shows the same.
@pytest.mark.parametrize("verb", ["check", "launch"])
def test_warnings_are_shown_by_all(verb: str, tmp_path: Path) -> None:
    _, printed = run_verb(verb, f"run.directory={tmp_path / 'run'}", "batch.updates_per_rollout=1", NOWHERE)
    assert "warning: algorithm.loss.name is kl_cov and batch.updates_per_rollout is 1" in printed
    assert not (tmp_path / "run").exists()


def test_what_is_missing_here_is_named_and_stops_only_what_needs_it() -> None:
    gone = ("model.path=gone", "model.config_file=examples/tiny_policy/config.json", "data.path=gone.jsonl", NOWHERE)
    error, printed = run_verb("check", *gone)
    assert error is None
    for words in (
        "not looked at: model.path gone is not on this machine, and the run is planned with the sizes in "
        "model.config_file examples/tiny_policy/config.json.",
        "not looked at: data.path gone.jsonl is not on this machine.",
        "not looked at: rewards.verifier nowhere.at_all:judge is imported by `megacov check --deep` only; there is no "
        "module nowhere on this machine.",
    ):
        assert words in printed
    assert printed.endswith("The run fits, as far as has been looked at.\n")
    assert len(of_severity(found_by("train", *gone), "impossible")) == 2


def test_files_of_an_evaluation_may_be_on_the_nodes_only() -> None:
    settings = "evaluation={suite: paper, data: tests}"
    assert "the set AIME24 needs the file" in of_severity(found_by("train", settings), "impossible")[0]
    found = found_by("launch", settings, is_elsewhere=True)
    assert any("the set AIME24 needs the file" in each for each in of_severity(found, "not looked at"))
    found = found_by("launch", "evaluation.suite=/there/suite.yaml", is_elsewhere=True)
    assert "evaluation.suite /there/suite.yaml is not on this machine." in of_severity(found, "not looked at")


def test_a_set_that_servers_would_refuse_is_named() -> None:
    found = found_by("check", "evaluation.suite=gsm8k")
    assert any("of the set gsm8k of evaluation.suite is" in each for each in of_severity(found, "warning"))
    found = found_by("check", "evaluation.suite=sum_pairs")
    assert not any("of evaluation.suite is" in remark.sentence for remark in found)


def test_a_model_on_the_nodes_only_can_be_submitted() -> None:
    there = ("model.path=/models/there", "model.config_file=examples/tiny_policy/config.json")
    found = found_by("launch", *there)
    assert of_severity(found, "impossible") == []
    (sentence,) = of_severity(found, "not looked at")
    assert sentence.startswith("model.path /models/there is not on this machine, and the run is planned with the sizes")
    assert sentence.endswith("the job looks for it on its nodes before it starts anything.")
    assert len(of_severity(found_by("launch", "model.path=/models/there"), "impossible")) == 1  # nothing to plan with


@pytest.mark.parametrize(("is_elsewhere", "severity"), [(True, "not looked at"), (False, "impossible")])
def test_prompts_may_be_missing_here_only_if_they_are_elsewhere(is_elsewhere: bool, severity: str) -> None:
    found = found_by("launch", "data.path=gone.jsonl", is_elsewhere=is_elsewhere)
    assert any("data.path" in sentence for sentence in of_severity(found, severity))


def test_a_signal_that_comes_too_late_is_found_before_the_job() -> None:
    late = ("checkpoint.grace_s=120", "slurm.signal_lead_s=189")
    for verb, severity in (("check", "impossible"), ("launch", "impossible"), ("train", "warning")):
        found = of_severity(found_by(verb, *late), severity)  # type: ignore[arg-type]
        assert any("set it to at least 190 s" in sentence for sentence in found), verb
    assert not any("190 s" in remark.sentence for remark in found_by("check", late[0], "slurm.signal_lead_s=190"))


def test_an_estimate_stops_no_run_that_has_been_running() -> None:
    small = "cluster.gpu_memory_gib=4.01"
    assert len(of_severity(found_by("train", small), "impossible")) == 1
    assert of_severity(found_by("resume", small), "impossible") == []
    assert of_severity(found_by("train", small, "parallel.backend=gloo"), "impossible") == []


@pytest.mark.parametrize(
    ("overrides", "severity"),
    [
        ([], "impossible"),
        (["rollout.server_arguments.context-length=300000"], ""),
        (["rollout.addresses_file=null", "rollout.addresses=[http://10.0.0.5:30000]"], "warning"),
    ],
)
def test_servers_that_others_start_may_take_longer_sequences(overrides: list[str], severity: str) -> None:
    found = found_by("check", "rollout.max_response_length=200000", *overrides, path=LARGE)
    assert [remark.severity for remark in found if "servers refuse more than" in remark.sentence] == [severity][
        : len(severity)
    ]
