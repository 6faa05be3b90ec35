"""Tests fork the processes that users start: a program cannot tell the difference, and both end alike."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.command import Ended, descendants, run, started, still_there, wait_for_line
from tests.support.forked import ForkedCommand, name_of

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


@pytest.mark.dist
def test_a_forked_run_ends_as_a_real_one_does(tmp_path: Path) -> None:
    def trained(name: str, *, real: bool) -> tuple[Ended, bytes]:
        arguments = ("run.steps=2", f"run.directory={tmp_path / name}", "run.deterministic=true", "parallel.tensor=2")
        ended = run("train", KL_COV, *SMALL, *arguments, log=tmp_path / f"{name}.log", real=real)
        assert ended.code == 0, ended.output
        return ended, (tmp_path / name / "weights" / "v2" / "model.safetensors").read_bytes()

    def without_times(ended: Ended) -> list[str]:
        return [line.rpartition("  s ")[0] for line in ended.output.splitlines()]

    (forked, weights), (real, expected) = trained("forked", real=False), trained("real", real=True)
    assert without_times(forked) == without_times(real) and len(without_times(real)) == 2
    assert forked.left == real.left == []
    assert weights == expected


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
        assert sorted(map(name_of, below)) == ["rank 0", "rank 1", "serve"]
        assert all(name_of(each) == each.name() for each in below)  # which forking alone sets
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert still_there(below) == []
