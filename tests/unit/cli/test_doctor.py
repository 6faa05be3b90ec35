"""The doctor: a missing part is wrong if it is needed, and only absent if megacov can run without it."""

from __future__ import annotations

import sys
from importlib.metadata import requires, version

import pytest
import torch
from packaging.requirements import Requirement

from megacov.cli import doctor

MEGATRON_NEEDS = [line for line in requires("megatron-core") or [] if line.startswith("transformer-engine")]


@pytest.fixture
def make_package(tmp_path, monkeypatch):
    """Put a package with these files on the path, and forget it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def make(name: str, **files: str) -> None:
        for file, source in {"__init__": "", **files}.items():
            path = tmp_path / name / f"{file.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        made.append(name)

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[name]


def test_everything_needed_is_found_where_the_tests_run():
    findings = {finding.part: finding for finding in doctor.examine()}
    assert [part for part, finding in findings.items() if finding.state == "wrong"] == []
    assert findings["torch"].found == version("torch")
    assert findings["megatron-core"].state == "found"
    assert set(findings) >= {"transformer-engine", "apex", "sglang", "CUDA devices", "CPU"}


def test_a_missing_or_unfit_package_is_wrong():
    needs = {name: Requirement(f"{name}{limits}") for name, limits in {"torch": ">=999", "no-such-thing": ""}.items()}
    torch = doctor._find_required("torch", needs, used_for="tensors")
    assert (torch.state, torch.found) == ("wrong", f"{version('torch')}, but it must be >=999")
    others = doctor._find_others(needs)
    assert (others.state, others.found) == ("wrong", "no-such-thing: not installed")


def test_the_apex_of_pypi_is_not_taken_for_nvidias(make_package):
    make_package("apex", __init__="raise RuntimeError('imported')")
    finding = doctor._find_apex()
    assert finding.state == "broken"
    assert "another package called apex" in finding.found


def test_nvidias_apex_is_known_by_its_fused_adam(make_package):
    make_package("apex", **{"optimizers.__init__": "class FusedAdam: ..."})
    assert doctor._find_apex().state == "found"


def test_a_part_that_cannot_be_imported_says_why(make_package):
    make_package("transformer_engine", pytorch="raise ImportError('libcudnn.so.9: no such file\\nmore')")
    finding = doctor._find_transformer_engine()
    assert (finding.state, finding.found) == ("broken", "cannot be imported: libcudnn.so.9: no such file")
    make_package("transformer_engine", pytorch="raise OSError")
    assert doctor._find_transformer_engine().found == "cannot be imported: OSError"


def test_the_table_ends_with_a_verdict(capsys):
    doctor.doctor()
    shown = capsys.readouterr().out
    assert "transformer-engine" in shown
    assert shown.endswith("megacov can run here.\n")


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("13.0", '--no-build-isolation "transformer-engine[core_cu13,pytorch]<2.12"'),
        ("12.8", '--no-build-isolation "transformer-engine[core_cu12,pytorch]<2.12"'),
        (None, "first install a torch with CUDA, of the release in constraints.txt"),
    ],
)
def test_transformer_engine_is_built_against_the_torch_that_is_there(cuda, expected):
    assert expected in doctor.how_to_build_transformer_engine(cuda, versions="<2.12")


def test_without_transformer_engine_the_doctor_says_how_to_build_it(capsys):
    doctor.doctor()
    how = "first install a torch with CUDA" if torch.version.cuda is None else "pip install --no-build-isolation"
    assert doctor._find_transformer_engine().state == "found" or how in capsys.readouterr().out


def test_the_engines_are_those_of_the_installed_megatron():
    assert any(str(Requirement(line).specifier) == doctor._engines_of_megatron() != "" for line in MEGATRON_NEEDS)
