"""Tests fork the processes that users start. test_train.py has a run that is forked once and started once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.command import descendants, run, started, still_there, wait_for_line
from tests.support.forked import ForkedCommand, fork_server, name_of, start_fork_server

KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"
SMALL = ("rollout.prompts_per_step=8", "batch.micro_batch_tokens=128")


def test_a_forked_process_is_given_what_a_started_one_is(tmp_path: Path) -> None:
    module = ("-m", "tests.support.process_facts")
    forked, real = (
        run("child", log=tmp_path / f"{is_real}.log", module=module, real=is_real) for is_real in (False, True)
    )
    assert forked == real
    assert forked.code == 7
    assert '"blocked_signals": []' in forked.output and '"RANK": "1"' in forked.output, forked.output
    assert "a sentence" in forked.output and "folder kept: True" in forked.output
    assert forked.output.count("written before") == 1


def test_a_process_with_a_spare_starts_children_like_any_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    module = ("-m", "tests.support.process_facts")
    forked, real = (
        run("child", log=tmp_path / f"{is_real}.log", module=module, real=is_real) for is_real in (False, True)
    )
    # The last line is the parent's own, which has the spare's socket among its files.
    assert forked.output.splitlines()[:-1] == real.output.splitlines()[:-1]
    assert (forked.code, forked.left) == (real.code, real.left) == (7, [])


def test_the_fork_server_has_one_thread() -> None:
    start_fork_server()
    assert fork_server().num_threads() == 1


@pytest.mark.parametrize("real", [False, True], ids=["forked", "real"])
def test_a_server_of_its_own_ends_when_asked(real: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started("serve", "examples/tiny_policy", "--port", "0", log=log, real=real) as process:
        assert isinstance(process, ForkedCommand) != real
        wait_for_line(log, "Serving ", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.dist
def test_what_a_forked_command_starts_has_its_name_and_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("train", KL_COV, "run.steps=1000", f"run.directory={tmp_path / 'run'}", "parallel.data=2", *SMALL)
    with started(*arguments, log=log) as process:
        wait_for_line(log, "step 1/", process)
        below = descendants(process.pid)
        names = sorted(map(name_of, below))
        assert names == ["rank 0", "rank 1", "serve", "verifier", "verifier guard"]
        assert all(name_of(each) == each.name() for each in below)  # which forking alone sets, or the guard itself
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert still_there(below) == []
