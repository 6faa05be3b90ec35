"""What settings name is imported in a process of its own: whatever it does there, the command ends with a sentence."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from megacov.cli.deep import look_deeper
from megacov.cli.deep_check import WARNING, look
from megacov.config import RunConfig, load_config
from megacov.errors import ConfigError, DataError

TINY = "yaml_configs/runs/tiny_grpo.yaml"
NO_FILES = ("model.path=gone", "model.config_file=examples/tiny_policy/config.json", "data.path=gone")

PLUG_INS = {
    "raises": ("raise RuntimeError('no judge')", "RuntimeError: no judge"),
    "exits": ("import sys; sys.exit(0)", "SystemExit"),
    "ends_the_process": (
        "import os, sys; print('good bye', file=sys.stderr, flush=True); os._exit(0)",
        "rewards.verifier plug_in:judge: the process that looked at it has ended with 0 (good bye)",
    ),
    "is_killed": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "has ended with -11"),
    "hangs": ("import time; time.sleep(600)", "plug_in:judge has not been read within 1.5 s"),
    "has_no_such_function": ("def juge(text, answer): return 1.0", "holds nothing of that name"),
    "is_not_there": ("import not_a_package_at_all", "No module named 'not_a_package_at_all'"),
}


def config_with(*overrides: str) -> RunConfig:
    return load_config(TINY, overrides)


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that can be imported."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[3]}:{tmp_path}")
    return tmp_path / "plug_in.py"


@pytest.mark.parametrize("name", list(PLUG_INS))
def test_whatever_a_plug_in_does_is_a_sentence(name: str, plug_in: Path) -> None:
    source, words = PLUG_INS[name]
    plug_in.write_text(source)
    (remark,) = look_deeper(
        config_with(*NO_FILES, "rewards.verifier=plug_in:judge"), deadline_s=1.5 if name == "hangs" else 60
    )
    assert remark.severity == "impossible" and remark.kind is ConfigError
    assert words in remark.sentence and "\n" not in remark.sentence


def test_what_a_plug_in_prints_or_starts_is_gone(plug_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pid = plug_in.with_name("pid")
    plug_in.write_text(f"""
import pathlib, subprocess, threading, time
print('{{"sentence": 1}}', flush=True)
sleeper = subprocess.Popen(['sleep', '600'])
pathlib.Path({str(pid)!r}).write_text(str(sleeper.pid))
threading.Thread(target=time.sleep, args=(600,)).start()
def judge(text, answer): return 1.0
""")
    began = time.monotonic()
    assert look_deeper(config_with(*NO_FILES, "rewards.verifier=plug_in:judge")) == []
    assert time.monotonic() - began < 60
    assert capfd.readouterr() == ("", "")
    sleeper = int(pid.read_text())
    _, alive = psutil.wait_procs([psutil.Process(sleeper)] if psutil.pid_exists(sleeper) else [], timeout=10)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_a_module_that_the_jobs_python_may_have_is_not_looked_at(plug_in: Path) -> None:
    plug_in.write_text("import not_a_package_at_all")
    (remark,) = look_deeper(config_with(*NO_FILES, "rewards.verifier=plug_in:judge"), same_python=False)
    assert remark.severity == "not looked at" and "not_a_package_at_all" in remark.sentence
    plug_in.write_text("judge = 1")
    (remark,) = look_deeper(config_with(*NO_FILES, "rewards.verifier=plug_in:judge"), same_python=False)
    assert remark.severity == "impossible" and "holds a int" in remark.sentence


def test_nothing_is_started_where_nothing_is_named() -> None:
    began = time.process_time(), psutil.Process().children()
    assert look_deeper(config_with(*NO_FILES)) == []
    assert psutil.Process().children() == began[1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], None),
        (["data.chat_template=true"], "The tokenizer has no chat template"),
        (["data.chat_template=true", "data.path=gone"], "The tokenizer has no chat template"),
        (["data.prompt_field=question"], "has no field 'question'"),
        (["model.path=gone", "data.prompt_field=question"], "has no field 'question'"),
        (["data.max_prompt_length=1"], "have more than data.max_prompt_length"),
    ],
)
def test_files_are_opened(overrides: list[str], words: str | None) -> None:
    sentences = [report for report in look(config_with(*overrides), ["files"]) if "sentence" in report]
    assert [each["kind"] for each in sentences] == ([] if words is None else ["DataError"])
    assert words is None or words in str(sentences[0]["sentence"])


def test_without_the_models_folder_a_warning_names_what_was_not_checked() -> None:
    (found,) = (report for report in look(config_with("model.path=gone"), ["files"]) if "sentence" in report)
    assert found["kind"] == WARNING and "neither their lengths in tokens nor their answers" in str(found["sentence"])


def test_answers_are_looked_at(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "3=", "answer": "3"}\n{"prompt": "4=", "answer": "four"}\n', encoding="ascii")
    (found,) = look_deeper(config_with(f"data.path={prompts}"))
    assert (found.severity, found.kind) == ("impossible", DataError)
    assert "2: sum_pairs needs a target in decimal digits as the answer of a prompt, got 'four'" in found.sentence


def test_files_are_opened_in_a_process_of_their_own() -> None:
    found = look_deeper(config_with("data.chat_template=true"))
    assert [(each.severity, each.kind) for each in found] == [("impossible", DataError)]
    assert "The tokenizer has no chat template" in found[0].sentence


def test_files_that_take_long_are_not_looked_at() -> None:
    (remark,) = look_deeper(config_with(), deadline_s=0.0)
    assert remark.severity == "not looked at" and "has not been read within 0 s" in remark.sentence
