"""Faults around checkpoints, each on a real run: what noticed it, what was lost, and whether the run came out the same.

A run of two tensor-parallel ranks and six short steps saves every two of them. Left alone it gives the reference; each
fault happens to another run of the same settings, which is then resumed. In deterministic mode both must end with the
same weights, bit for bit.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import Ended, descendants, run, started, wait_for_line
from tests.support.fault_rank import NUM_RANKS
from tests.support.forked import name_of

STEPS, EVERY = 6, 2
STORM_STEPS = 40
KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"
SETTINGS = (
    f"run.steps={STEPS}",
    f"checkpoint.every={EVERY}",
    "run.deterministic=true",
    f"parallel.tensor={NUM_RANKS}",
    "parallel.timeout_s=60.0",
    "rollout.prompts_per_step=8",
    "batch.micro_batch_tokens=128",
    "monitor.theorem_every=1",
    "monitor.theorem_gradient=true",
    # A resumed run has the same weights only if the controller continues where it was.
    "algorithm.controller={name: pi, target_entropy: 2.0, acts_on: kl_coef, bounds: {lower: 0.0, upper: 8.0}, "
    "gains: {proportional: 0.5, integral: 0.1}}",
)
_CONTINUED = re.compile(r"(?:continuing after step|has finished: all) (\d+)")
_STEP = re.compile(rf"step (\d+)/{STEPS}")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one fault. `lost_steps` are those made twice."""

    fault: str
    detected_by: str
    code: int
    lost_steps: int
    hangs: bool
    resumed_exactly: bool
    output: str


def final_weights(folder: Path, steps: int = STEPS) -> bytes:
    """The trained policy of a run that has ended."""
    return (folder / "weights" / f"v{steps}" / "model.safetensors").read_bytes()


def train(folder: Path, *overrides: str) -> Ended:
    """A run from start to end."""
    return run("train", KL_COV, *SETTINGS, f"run.directory={folder}", *overrides, log=folder.with_suffix(".log"))


def resume(folder: Path, *overrides: str) -> Ended:
    """The same run, resumed."""
    return run("resume", str(folder), *overrides, log=folder.with_suffix(".resumed.log"))


def last_step(output: str) -> int:
    """The last step that a run reported."""
    return max((int(step) for step in _STEP.findall(output)), default=0)


def outcome(fault: str, folder: Path, ended: Ended, reference: bytes, *, detected_by: str = "") -> Outcome:
    """Resume a run that ended before its time, and compare."""
    resumed = resume(folder)
    gone_on = _CONTINUED.search(resumed.output)
    assert resumed.code == 0 and gone_on, f"{fault}:\n{ended.output}\n{resumed.output}"
    return Outcome(
        fault=fault,
        detected_by=detected_by or _said(ended.output) or f"exit code {ended.code}",
        code=ended.code,
        lost_steps=max(0, last_step(ended.output) - int(gone_on[1])),
        hangs=bool(ended.left or resumed.left),
        resumed_exactly=final_weights(folder) == reference,
        output=ended.output + resumed.output,
    )


def _said(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("megacov:")]
    return lines[-1].removeprefix("megacov: ") if lines else ""


def rank_fails(
    fault: str, rank: int, folder: Path, reference: bytes, *, step: int = 4, overrides: tuple[str, ...] = ()
) -> Outcome:
    """A rank fails at a moment of the save of a step, in the ways of `fault_rank`."""
    arguments = ("train", KL_COV, *SETTINGS, f"run.directory={folder}", *overrides)
    module = ("-m", "tests.support.fault_rank", fault, str(rank), str(step))
    ended = run(*arguments, log=folder.with_suffix(".log"), module=module)
    return outcome(f"{fault}, rank {rank}", folder, ended, reference)


def signalled(number: signal.Signals, folder: Path, reference: bytes) -> Outcome:
    """A signal after the third step."""
    log = folder.with_suffix(".log")
    with started("train", KL_COV, *SETTINGS, f"run.directory={folder}", log=log) as process:
        wait_for_line(log, f"step 3/{STEPS}", process)
        process.send_signal(number)
        code = process.wait(timeout=60)
    return outcome(number.name, folder, Ended(code, log.read_text(), []), reference)


def server_killed(folder: Path, reference: bytes, *, max_restarts: int) -> Outcome:
    """The embedded server is killed, once more than it is started anew."""
    log = folder.with_suffix(".log")
    limit = f"rollout.max_restarts={max_restarts}"
    with started("train", KL_COV, *SETTINGS, f"run.directory={folder}", limit, log=log) as process:
        wait_for_line(log, f"step 1/{STEPS}", process)
        for num_killed in range(max_restarts + 1):
            while log.read_text().count("serves with the current weights") < num_killed:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            next(child for child in descendants(process.pid) if name_of(child) == "serve").kill()
        code = process.wait(timeout=120)
    return outcome("server killed", folder, Ended(code, log.read_text(), []), reference)


def damaged(fault: str, damage: Callable[[Path], None], template: Path, folder: Path, reference: bytes) -> Outcome:
    """Something happens to the files of a run that has saved steps 2 and 4 and was then killed."""
    subprocess.run(["cp", "-r", str(template), str(folder)], check=True)
    damage(folder)
    result = outcome(fault, folder, Ended(0, f"step 4/{STEPS}\n", []), reference, detected_by="resume")
    said = [line.removeprefix("megacov: ") for line in result.output.splitlines() if line.startswith("megacov: ")]
    return Outcome(**{**vars(result), "detected_by": said[0] if said else "nothing to detect"})


def make_template(folder: Path) -> None:
    """A run that was killed after it had saved steps 2 and 4."""
    log = folder.with_suffix(".log")
    with started("train", KL_COV, *SETTINGS, f"run.directory={folder}", log=log) as process:
        deadline = time.monotonic() + 120
        while not (folder / "latest").is_file() or "00000004" not in (folder / "latest").read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        process.kill()


def _newest(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / "step_00000004" / name


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _leave_temporary(folder: Path) -> None:
    left = folder / "checkpoints" / "tmp_step_00000006"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "shard truncated": lambda folder: _truncate(_newest(folder, "__1_0.distcp")),
    "shard missing": lambda folder: _newest(folder, "__0_0.distcp").unlink(),
    "shard with a flipped bit": lambda folder: _flip(_newest(folder, "__0_0.distcp")),
    "trainer.json with a flipped bit": lambda folder: _flip(_newest(folder, "trainer.json")),
    "MANIFEST.json with a flipped bit": lambda folder: _flip(_newest(folder, "MANIFEST.json")),
    "latest empty": lambda folder: (folder / "latest").write_text(""),
    "latest stale": lambda folder: (folder / "latest").write_text("step_00000002\n"),
    "temporary folder left over": _leave_temporary,
}
KILLS = (
    ("planning", 0),
    ("planning", 1),
    ("writing", 0),
    ("writing", 1),
    ("recording", 1),
    ("publishing", 0),
    ("naming", 0),
    ("pointing", 0),
    ("pruning", 0),
)
GOT_OVER = ("disk full", "writer dies")


def storm(folder: Path, *, num_kills: int, seed: int) -> tuple[int, list[int], bool]:
    """Kill a run at random moments and resume it: how often, after which steps it went on, and whether it is the same.

    Longer than the others, and compared with one of its own length.
    """
    steps = f"run.steps={STORM_STEPS}"
    alone = folder.with_name(f"{folder.name}_alone")
    assert train(alone, steps).code == 0
    generator = random.Random(seed)
    log, gone_on, kills = folder.with_suffix(".log"), [], 0
    arguments: tuple[str, ...] = ("train", KL_COV, *SETTINGS, steps, f"run.directory={folder}")
    while True:
        with started(*arguments, log=log) as process:
            if kills < num_kills:
                # One in five falls into the start, the others into the steps and their saves.
                if generator.random() < 0.8:
                    wait_for_line(log, f"/{STORM_STEPS}  ", process)
                time.sleep(generator.random() * 2.0)
                kills += process.poll() is None
                process.kill()
            code = process.wait(timeout=240)
        gone_on += [int(step) for step in _CONTINUED.findall(log.read_text())]
        if code == 0:
            return kills, gone_on, final_weights(folder, STORM_STEPS) == final_weights(alone, STORM_STEPS)
        if any((folder / "checkpoints").glob("step_*")):
            arguments = ("resume", str(folder))


def resumed_twice(template: Path, folder: Path, reference: bytes) -> Outcome:
    """A second process resumes a run while the first goes on with it."""
    subprocess.run(["cp", "-r", str(template), str(folder)], check=True)
    log = folder.with_suffix(".log")
    with started("resume", str(folder), log=log) as process:
        wait_for_line(log, "continuing after", process)
        second = run("resume", str(folder), log=folder.with_suffix(".second.log"))
        code = process.wait(timeout=120)
    assert code == 0 and second.code == 3, second.output
    is_same = final_weights(folder) == reference
    return Outcome("two processes", _said(second.output), second.code, 0, bool(second.left), is_same, second.output)
