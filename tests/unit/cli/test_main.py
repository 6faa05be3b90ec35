"""The command: light to start, and one sentence with an exit code for each kind of error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megacov import errors

ROOT = Path(__file__).parents[3]
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MegacovError)]


def megacov(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megacov", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_help_names_every_verb_and_imports_no_torch():
    code = "import sys, megacov.cli.main; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert loaded.strip() == "[]"
    shown = megacov("--help")
    assert shown.returncode == 0
    for verb in ("train", "serve", "compare", "status", "doctor", "schema"):
        assert f"\n  {verb} " in shown.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_one_sentence_and_its_own_exit_code(kind, monkeypatch, capsys):
    from megacov.cli import main

    def fail(prog_name: str) -> None:
        raise kind("run.steps is [0]: it must be a whole number.")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == kind.exit_code
    assert capsys.readouterr() == ("", "megacov: run.steps is [0]: it must be a whole number.\n")


def test_each_kind_of_error_has_an_exit_code_of_its_own():
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize("kind", KINDS)
def test_each_exit_code_is_told(kind):
    meaning = errors.exit_meaning(kind.exit_code)
    assert meaning and "\n" not in meaning and not meaning.endswith(".")
    assert meaning != errors.exit_meaning(99)


def test_what_exit_codes_mean():
    assert errors.exit_meaning(137) == "it was ended by SIGKILL"
    assert errors.exit_meaning(130) == "it was interrupted by Ctrl-C"
    assert errors.exit_meaning(8) == "a rank died or stopped answering, so the others were stopped"
    assert errors.exit_meaning(10).startswith("SLURM does not take")


def test_an_interrupt_ends_with_130(monkeypatch):
    from megacov.cli import main

    def interrupt(prog_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupt)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 130


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.yaml"], "megacov: the configuration file gone.yaml cannot be read (No such file or directory): "),
        (
            ["yaml_configs/runs/tiny_kl_cov.yaml", "run.stepz=3"],
            "megacov: run.stepz is not a setting: did you mean run.steps?",
        ),
        (
            ["yaml_configs/runs/tiny_kl_cov.yaml", "algorithm.loss.name=x"],
            "megacov: algorithm.loss.name is x: set it to ",
        ),
    ],
)
def test_a_wrong_configuration_ends_train_with_one_line(arguments, sentence):
    result = megacov("train", *arguments)
    assert result.returncode == errors.ConfigError.exit_code
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1


def test_schema_prints_json():
    assert "properties" in json.loads(megacov("schema").stdout)


def test_an_error_shows_what_is_not_printable(monkeypatch, capsys):
    from megacov.cli import main

    def fail(prog_name: str) -> None:
        raise errors.DataError("a.csv has no column step, one of \x1b[2Ja: name it.")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err == "megacov: a.csv has no column step, one of \\x1b[2Ja: name it.\n"


@pytest.mark.parametrize("verb", ["report", "predict", "compare", "samples", "resume", "train", "status", "check"])
def test_a_name_that_is_too_long_is_one_sentence(verb, monkeypatch, capsys):
    from megacov.cli import main

    monkeypatch.setattr(sys, "argv", ["megacov", verb, "x" * 300])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code in (2, 3)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "too long" in sentence


def test_output_that_a_full_disk_refuses_is_an_error():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "megacov", "schema"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == errors.DataError.exit_code
    (sentence,) = ended.stderr.splitlines()
    assert "Standard output was not written whole (No space left on device)" in sentence
