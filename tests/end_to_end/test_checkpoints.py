"""`megacov resume` on real runs: whatever ended a run, it goes on from the last good checkpoint to the same weights."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.monitor.status_file import read_logged_steps
from tests.support import faults, faults_at_ends, folder_faults, verifier_faults
from tests.support.command import run, started, wait_for_line

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run left alone."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    ended = faults.train(folder)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def reference(finished: Path) -> bytes:
    return faults.final_weights(finished)


def _check(result: faults.Outcome, *, lost: int = faults.EVERY) -> None:
    assert result.resumed_exactly and not result.hangs, result
    assert result.lost_steps <= lost, result
    assert "Traceback" not in result.output, result.output


def test_a_run_that_goes_on_is_not_resumed(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    arguments = ("train", faults.KL_COV, *faults.SETTINGS, f"run.directory={folder}", "run.steps=1000")
    with started(*arguments, log=log) as process:
        wait_for_line(log, "step 2/", process)
        second, again = faults.resume(folder), run(*arguments, log=tmp_path / "again.log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    for other in (second, again):
        assert other.code == 3 and "is in use by process" in other.output, other.output
    assert "asked to leave: step" in log.read_text()


@pytest.mark.slow  # test_output_without_a_reader_ends_no_run shows the same of SIGHUP
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_loses_nothing(number: signal.Signals, tmp_path: Path, reference: bytes) -> None:
    result = faults.signalled(number, tmp_path / "run", reference)
    assert result.code == 75
    _check(result, lost=0)
    assert [each.step for each in read_logged_steps(tmp_path / "run") or ()] == list(range(1, faults.STEPS + 1))


@pytest.mark.parametrize("hangup", [pytest.param(False, marks=pytest.mark.slow), True])
def test_output_without_a_reader_ends_no_run(*, hangup: bool, tmp_path: Path, reference: bytes) -> None:
    result = faults_at_ends.output_closed(tmp_path / "run", reference, hangup=hangup)
    assert result.code == (75 if hangup else 0), result.output
    _check(result, lost=0)
    assert [each.step for each in read_logged_steps(tmp_path / "run") or ()] == list(range(1, faults.STEPS + 1))
    for name in ("tensorboard", "samples"):
        assert result.output.count(f"{name} was deleted: it is made again") == 1
        assert any((tmp_path / "run" / name).iterdir())


@pytest.mark.slow
def test_repeated_signals_leave_a_save_its_grace(tmp_path: Path, reference: bytes) -> None:
    result = faults_at_ends.signalled_again(tmp_path / "run", reference)
    assert result.code == 75, result.output
    assert result.output.count("s left to save and leave; ") == 2
    _check(result, lost=0)


def test_a_server_killed_again_and_again_ends_the_run_and_loses_nothing(tmp_path: Path, reference: bytes) -> None:
    result = faults.server_killed(tmp_path / "run", reference, max_restarts=1)
    assert result.code in (4, 5)  # whichever came first: a sample, or new weights
    assert "a rollout server is lost: " in result.output and "serves with the current weights" in result.output
    assert "is saved; continue with `megacov resume " in result.output
    _check(result, lost=0)


def test_a_verifier_that_hangs_does_not_hold_up_a_signal(tmp_path: Path, reference: bytes) -> None:
    result = verifier_faults.signalled_while_verifier_hangs(tmp_path / "run", reference)
    assert result.code == 75
    _check(result, lost=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hangs", "dies", "nonsense"])
def test_a_verifier_that_fails_costs_no_step(kind: str, tmp_path: Path, reference: bytes) -> None:
    once = verifier_faults.verifier_fails(kind, tmp_path / "once", reference, often="once")
    assert once.code == 0
    _check(once, lost=0)
    always = verifier_faults.verifier_fails(kind, tmp_path / "always", reference, often="always")
    assert always.code == 6 and "more than rewards.max_failed_share = 0.05 allows" in always.output
    assert "step 3 is saved; continue with" in always.output
    _check(always, lost=0)


@pytest.mark.parametrize(
    ("fault", "rank"),
    [pytest.param(*kill, marks=[] if kill == ("writing", 1) else pytest.mark.slow) for kill in faults.KILLS],
)
def test_a_rank_killed_in_a_save_costs_an_interval(fault: str, rank: int, tmp_path: Path, reference: bytes) -> None:
    result = faults.rank_fails(fault, rank, tmp_path / "run", reference)
    assert result.code == 128 + signal.SIGKILL
    # The step after the one being saved may have ended before the rank was killed.
    _check(result, lost=faults.EVERY + 1)
    # The steps after the checkpoint were logged twice, and are shown once.
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("reward/mean")] == list(range(1, faults.STEPS + 1))
    # The controller was at work, and its sum went on from that of the checkpoint.
    sums = [event.value for event in events.Scalars("control/integral")]
    assert sums[0] > 0 and sums == sorted(set(sums)) and len(sums) == faults.STEPS


@pytest.mark.parametrize("fault", ["disk full", pytest.param("writer dies", marks=pytest.mark.slow)])
def test_a_save_that_fails_is_said_and_got_over(fault: str, tmp_path: Path, reference: bytes) -> None:
    folder = tmp_path / "run"
    result = faults.rank_fails(fault, 1, folder, reference)
    assert result.code == 0
    assert "warning: step 4 was not saved: rank 1: " in result.output
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step_00000002", "step_00000006"]
    _check(result, lost=0)


@pytest.mark.slow
def test_a_writer_that_hangs_is_given_up(tmp_path: Path, reference: bytes) -> None:
    overrides = ("checkpoint.deadline_s=15.0",)
    result = faults.rank_fails("writer hangs", 1, tmp_path / "run", reference, overrides=overrides)
    # The run comes to its end, but cannot save it.
    assert result.code == 9
    assert "rank 1 has not written its part within checkpoint.deadline_s=15" in result.output
    _check(result, lost=faults.STEPS - 2)


@pytest.mark.slow
def test_a_rank_that_stops_ends_the_run(tmp_path: Path, reference: bytes) -> None:
    overrides = ("parallel.timeout_s=30.0", "parallel.control_timeout_s=30.0", "checkpoint.deadline_s=30.0")
    result = faults.rank_fails("rank stops", 1, tmp_path / "run", reference, overrides=overrides)
    assert result.code != 0
    _check(result, lost=faults.EVERY + 1)


@pytest.mark.slow
@pytest.mark.parametrize("damage", faults.DAMAGES)
def test_damaged_files_cost_an_interval(
    damage: str, tmp_path: Path, reference: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    template = tmp_path_factory.getbasetemp() / "template"
    if not template.is_dir():
        faults.make_template(template)
    result = faults.damaged(damage, faults.DAMAGES[damage], template, tmp_path / "run", reference)
    _check(result)
    assert ("is damaged and is skipped" in result.output) == (result.lost_steps > 0)


def test_a_run_folder_that_is_renamed_is_the_one_to_resume(tmp_path: Path, reference: bytes) -> None:
    result = folder_faults.renamed(tmp_path / "run", reference)
    assert result.code in (75, 5)  # 5 if the folder of weights went away while they were being written
    _check(result, lost=0)


@pytest.mark.slow
@pytest.mark.parametrize("stray", folder_faults.STRAYS)
def test_what_does_not_belong_there_costs_nothing(
    stray: str, tmp_path: Path, reference: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    template = tmp_path_factory.getbasetemp() / "template"
    if not template.is_dir():
        faults.make_template(template)
    _check(faults.damaged(stray, folder_faults.STRAYS[stray], template, tmp_path / "run", reference), lost=0)


@pytest.mark.slow
def test_two_runs_never_share_a_folder_of_weights(tmp_path: Path, reference: bytes) -> None:
    _check(folder_faults.two_runs_in_one_folder(tmp_path / "run", reference), lost=0)


@pytest.mark.slow
def test_twenty_kills_at_random_change_nothing(tmp_path: Path) -> None:
    kills, _, is_same = faults.storm(tmp_path / "run", num_kills=20, seed=1)
    assert is_same
    assert kills == 20


def test_another_layout_goes_on_and_contradictions_are_refused(tmp_path: Path, finished: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "run"
    assert faults.train(folder, "run.steps=2").code == 0
    other = tmp_path / "other"
    shutil.copytree("examples/tiny_policy", other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    changes = ("optimizer.lr=1e-5", "rollout.temperature=0.5", f"model.path={other}")
    refused = faults.resume(folder, f"run.steps={faults.STEPS}", *changes)
    assert refused.code == 2
    assert f"model.tokenizer: model.path {other} has another tokenizer.json" in refused.output
    assert "optimizer.lr was 0.0003 and is 1e-05; rollout.temperature was 1.0 and is 0.5" in refused.output
    layout = ("parallel.tensor=1", "parallel.data=2", "parallel.pipeline=2", f"run.steps={faults.STEPS}")
    resumed = faults.resume(folder, *layout)
    assert resumed.code == 0, resumed.output
    command = ("export", str(folder), str(tmp_path / "model"), "--dtype", "bfloat16")
    exported = run(*command, log=tmp_path / "export.log")
    assert exported.code == 0, exported.output
    found = load_file(tmp_path / "model" / "model.safetensors")
    served = load_file(folder / "weights" / f"v{faults.STEPS}" / "model.safetensors")
    expected = load_file(finished / "weights" / f"v{faults.STEPS}" / "model.safetensors")
    assert found.keys() == served.keys() == expected.keys()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("137=")["input_ids"]
    assert all(torch.equal(found[name], served[name].bfloat16()) for name in found)
    # Sampled tokens are the same ones only as long as rounding does not change one.
    for name, value in expected.items():
        torch.testing.assert_close(served[name], value, rtol=1e-2, atol=1e-3)
