"""Faults around the folders of a run: renamed, copied, shared with another run, or with files of somebody else."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from megacov.rollout.sampling.carried import NOT_BEGUN, CarriedGroup, dump_carried
from megacov.types import Prompt
from tests.support.command import Ended, run, started, wait_for_line
from tests.support.faults import KL_COV, SETTINGS, STEPS, Outcome, final_weights, outcome


def _leave_stray_files(folder: Path) -> None:
    """A group that partial rollouts would continue, and random states of another time."""
    newest = folder / "checkpoints" / "step_00000004"
    (newest / "carried.jsonl").write_text(dump_carried([CarriedGroup(Prompt("9", "1+1=", (5, 6), "2"), (NOT_BEGUN,))]))
    (newest / "random" / "rank_00009.safetensors").write_bytes(b"none")


def _copy_to_another_step(folder: Path) -> None:
    shutil.copytree(folder / "checkpoints" / "step_00000002", folder / "checkpoints" / "step_00000900")


def _rename_to_another_step(folder: Path) -> None:
    (folder / "checkpoints" / "step_00000002").rename(folder / "checkpoints" / "step_00000900")


def _leave_absurd_step(folder: Path) -> None:
    (folder / "checkpoints" / "step_99999999999999999999").mkdir()


# Each happens to a run that has saved steps 2 and 4 and was then killed; none of them costs a step.
STRAYS: dict[str, Callable[[Path], object]] = {
    "stray files in a checkpoint": _leave_stray_files,
    "checkpoint copied to another step": _copy_to_another_step,
    "checkpoint renamed to another step": _rename_to_another_step,
    "checkpoint of an absurd step": _leave_absurd_step,
    "allowed.json empty": lambda folder: (folder / "allowed.json").touch(),
}


def renamed(folder: Path, reference: bytes) -> Outcome:
    """The run folder is renamed while the run goes on, which is then asked to leave.

    If weights are being written at that moment, the run saves and ends by itself. Either way it names the new folder.
    """
    log, new = folder.with_suffix(".log"), folder.with_name(f"{folder.name}_renamed")
    with started("train", KL_COV, *SETTINGS, f"run.directory={folder}", log=log) as process:
        wait_for_line(log, f"step 2/{STEPS}", process)
        deadline = time.monotonic() + 60
        while not (folder / "latest").is_file():  # a rename in the middle of a save would cost that save
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        folder.rename(new)
        while process.poll() is None and f"step 3/{STEPS}" not in log.read_text():
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    assert f"continue with `megacov resume {new}`" in log.read_text(), log.read_text()
    return outcome("run folder renamed", new, Ended(code, log.read_text(), []), reference)


def two_runs_in_one_folder(folder: Path, reference: bytes) -> Outcome:
    """Another run names the folder of weights of one that goes on, and again when that has ended."""
    shared, log, other = folder / "weights", folder.with_suffix(".log"), folder.with_name(f"{folder.name}_other")
    sharing = (KL_COV, *SETTINGS, f"weight_sync.directory={shared}")
    second = ("train", *sharing, f"run.directory={other}")
    with started("train", *sharing, f"run.directory={folder}", log=log) as process:
        wait_for_line(log, f"step 1/{STEPS}", process)
        during = run(*second, log=folder.with_suffix(".during.log"))
        code = process.wait(timeout=120)
    after = run(*second, log=folder.with_suffix(".after.log"))
    assert code == 0 and during.code == after.code == 3, during.output + after.output
    assert "is in use by process" in during.output and "holds the weights of the run in" in after.output
    assert not other.exists()
    return Outcome(
        fault="two runs, one folder of weights",
        detected_by=during.output.strip().removeprefix("megacov: "),
        code=during.code,
        lost_steps=0,
        hangs=bool(during.left or after.left),
        resumed_exactly=final_weights(folder) == reference,
        output=during.output + after.output,
    )
