"""`megacov report` from the arguments to the file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from megacov.cli.report import report
from megacov.errors import DataError
from tests.support.shown_runs import write_run


def run_report(*arguments: object):
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("cli") / "run", num_steps=12)


def test_it_writes_one_file_into_the_run_or_where_it_is_asked(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run_report(folder)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Report: {folder / 'report.html'} (")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path in before} == before
    assert {path for path in folder.rglob("*") if path.is_file()} - set(before) == {folder / "report.html"}
    result = run_report(folder, "--output", tmp_path / "a.html", "--max-tokens", 100)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "This page holds 4 responses with 80 tokens, of the last step" in text
    assert "RUN/samples has 48 responses with 960 tokens" in text


def test_a_page_that_cannot_be_written_leaves_the_old_one(folder, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        raise run_report(folder, "--output", tmp_path / "nowhere" / "a.html").exception
    (tmp_path / "a.html").write_text("old")
    (tmp_path / "tmp_a.html").mkdir()  # in the way of the new one
    with pytest.raises(DataError, match="choose another --output"):
        raise run_report(folder, "--output", tmp_path / "a.html").exception
    assert (tmp_path / "a.html").read_text() == "old"


def test_a_pipe_is_not_replaced_and_a_link_stays(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a device or a pipe"):
        raise run_report(folder, "--output", tmp_path / "pipe").exception
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link.html").symlink_to(tmp_path / "a.html")
    assert run_report(folder, "--output", tmp_path / "link.html").exit_code == 0
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "a.html").stat().st_size > 1000


def test_it_needs_no_torch(folder, tmp_path):
    code = f"""
import sys
from pathlib import Path
from megacov.cli.report import report
report(Path({str(folder)!r}), Path({str(tmp_path / "a.html")!r}), 1000)
print([name for name in ("torch", "transformers", "matplotlib") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
