"""Promises of the repository as a whole: a licence, commands that exist, and nothing of one machine or one moment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# Put together here, so that this file does not name what it forbids.
MACHINE_PATHS = ("/" + "work/", "/" + "root/")


def _paths() -> list[Path]:
    """Paths that are in the repository or would be added to it; those that git has and the tree lacks too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def _files() -> list[Path]:
    return [path for path in _paths() if path.is_file()]


def _texts(*suffixes: str) -> dict[str, str]:
    texts = {}
    for path in _files():
        if not suffixes or path.suffix in suffixes:
            try:
                texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # weights and pictures
    return texts


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_is_named_exists(page):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"`make ([a-z][a-z-]*)|^(?:\$ )?make ([a-z][a-z-]*)", (ROOT / page).read_text(), re.MULTILINE)
    )
    names = {first or second for first, second in named}
    assert names, f"{page} names no target"
    assert names <= targets


def test_no_file_names_a_path_of_one_machine():
    texts = _texts()
    assert "pyproject.toml" in texts
    assert [f"{name} names {path}" for name, text in texts.items() for path in MACHINE_PATHS if path in text] == []


def test_nothing_in_the_repository_is_a_link():
    """A link leads out of a clone: one named .venv made `make env` fail wherever its target was missing."""
    assert [path.name for path in _paths() if path.is_symlink()] == []


def test_code_is_ascii():
    assert [name for name, text in _texts(".py", ".yaml", ".toml").items() if not text.isascii()] == []


def _fakes_a_module(tree: ast.AST) -> bool:
    """Whether code puts something into sys.modules."""

    def is_modules(node: ast.AST) -> bool:
        return ast.unparse(node).strip("'") == "sys.modules"

    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=value, ctx=ast.Store()) if is_modules(value):
                return True
            case ast.Call(func=ast.Attribute(value=value, attr="setdefault" | "update" | "__setitem__")) if is_modules(
                value
            ):
                return True
            case ast.Call(func=ast.Attribute(attr="setitem" | "dict"), args=[first, *_]) if is_modules(first):
                return True
    return False


def test_no_module_is_faked():
    assert [name for name, text in _texts(".py").items() if _fakes_a_module(ast.parse(text))] == []


@pytest.mark.parametrize(
    "source",
    [
        "sys.modules['megatron'] = fake",
        "monkeypatch.setitem(sys.modules, 'megatron', fake)",
        "patch.dict('sys.modules', megatron=fake)",
        "sys.modules.setdefault('sglang', fake)",
    ],
)
def test_a_faked_module_is_found(source):
    assert _fakes_a_module(ast.parse(source))
    assert not _fakes_a_module(ast.parse("loaded = 'torch' in sys.modules\ntorch = sys.modules.get('torch')"))


def test_constraints_pin_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"not a plain pin: {line}"
            pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["math"], *extras["gym"], *extras["sweep"]]
    for line in (line for line in asked if not line.startswith("megacov[")):
        need = Requirement(line)
        assert need.specifier.contains(pins[re.sub(r"[-_.]+", "-", need.name).lower()]), line
    assert "apex" not in pins, "PyPI's apex is another package"


def test_the_package_is_run_as_a_module():
    command = [sys.executable, "-m", "megacov", "--version"]
    version = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert version.strip() == "megacov " + tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_tests_that_the_docs_name_exist():
    text = (ROOT / "docs" / "testing.md").read_text()
    tests = r"`((?:unit|distributed|end_to_end|benchmarks)/[\w/]+\.py)`((?:,? `test_\w+(?:\[[^`]*\])?`)*)"
    named = re.findall(tests, text)
    assert len(named) > 80
    missing = []
    for file, names in named:
        source = ROOT / "tests" / file
        functions = set(re.findall(r"^def (\w+)", source.read_text(), re.MULTILINE)) if source.is_file() else set()
        missing += [f"{file} {name}" for name in re.findall(r"`(\w+)", names) if name not in functions]
        missing += [] if source.is_file() else [file]
    assert missing == []
