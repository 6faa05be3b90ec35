"""`megacov status` of run folders as a run and its jobs leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from megacov.checkpoint import RunLock
from megacov.cli.status import render
from megacov.cli.status_run import RunStatus, read_status
from megacov.errors import DataError, RankError, RolloutError, exit_meaning
from megacov.launch.jobs import SlurmJob
from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms_file import ALARMS_NAME, AlarmsFile
from megacov.monitor.run_end import ENDED_NAME, NotedEnd, explain_end, settle_end
from megacov.monitor.status_file import STATUS_NAME, StatusFile
from tests.support.kill_points import save

ROOT = Path(__file__).parents[3]
STEPS = 20

JOB = SlurmJob("7", "7", "RUNNING", "", "node[0-1]", 2, 0, 3600, 0, ("/runs/x.sbatch", "0"))
WAITS = replace(JOB, state="PENDING", reason="Priority", nodes="", left_s=None)
OVER = replace(JOB, state="TIMEOUT", left_s=None)


@pytest.fixture
def make_run(tmp_path):
    """fn(number of steps done) -> run folder, with a checkpoint of every tenth step."""

    def make(done: int) -> Path:
        run = tmp_path / "run"
        with RunLock(run):
            (run / "config.yaml").write_text(yaml.safe_dump({"run": {"name": "tiny", "steps": STEPS}}))
            status = StatusFile(run, name="tiny", num_steps=STEPS)
            for step in range(1, done + 1):
                status.add_step(step, {"reward/mean": step / 32, "entropy/token_mean": 2 - step / 16})
            for step in range(10, done + 1, 10):
                save(run, step, "x")
        return run

    return make


def resume_status(run: Path, *, step: int) -> StatusFile:
    return StatusFile(run, name="tiny", num_steps=STEPS, first_step=step)


def shown(found: RunStatus) -> dict[str, str]:
    return dict(render(found))


def test_alarms_are_shown_while_they_last_and_named_when_they_are_over(make_run):
    run = make_run(12)
    found = read_status(run)
    assert found.alarms is None and f"{run / ALARMS_NAME} is missing" in shown(found)["alarms"]
    AlarmsFile(run)
    assert not {"alarm", "alarms", "past alarms"} & set(shown(read_status(run)))
    first, second = (Alarm(kind, 4, "H is 0.04", "it collapses", "lower it") for kind in ("collapse", "empty_band"))
    file = AlarmsFile(run)
    file.add([first, second])
    file.add([replace(second, cleared=9)])
    with (run / ALARMS_NAME).open("a") as damaged:
        damaged.write("{\n")
    found = read_status(run)
    lines = shown(found)
    assert lines["alarm"] == "collapse since step 4: H is 0.04; it collapses; lower it"
    assert lines["past alarms"] == "empty_band at steps 4 to 9"
    assert f"1 line of {run / ALARMS_NAME} cannot be read" in lines.values()
    assert [alarm["kind"] for alarm in json.loads(json.dumps(asdict(found), default=str))["alarms"]] == [
        "collapse",
        "empty_band",
    ]


def test_a_run_that_trains(make_run):
    run = make_run(12)
    with RunLock(run):
        found = read_status(run)
    assert found.state.word == "training" and f"process {os.getpid()} on " in found.state.sentence
    lines = shown(found)
    assert lines["run"] == f"tiny, {run}"
    assert lines["step"].startswith("12 of 20, recorded ") and "; usually one in " in lines["step"]
    assert lines["entropy"] == "1.2500 nats, -0.6250 over 10 logged steps"
    assert lines["reward"] == "0.3750, +0.3125 over 10 logged steps"
    assert lines["checkpoint"].startswith("step 10, ")
    assert lines["checkpoint"].endswith(str(run / "checkpoints" / "step_00000010"))
    assert not {"job", "restarts"} & set(lines)


def test_a_run_that_nobody_finished(make_run):
    found = read_status(make_run(12))
    assert found.state.word == "stopped" and found.state.exit_code is None
    assert f"process {os.getpid()} on " in found.state.sentence


def test_a_run_that_has_done_all_its_steps(make_run):
    state = read_status(make_run(STEPS)).state
    assert (state.word, state.exit_code) == ("ended", 0)


def test_the_end_of_a_job_is_told_with_its_meaning(make_run):
    run = make_run(12)
    (run / "logs" / "slurm_7_0").mkdir(parents=True)
    (run / "logs" / "slurm_7_1").mkdir()
    (run / "logs" / "ended").write_text("7\n")
    found = read_status(run)
    assert found.state.sentence == "ended with code 7: a loss, gradient or log-prob is not finite"
    assert (found.state.word, found.state.exit_code, found.restarts) == ("failed", 7, 1)
    assert found.logs == run / "logs" / "slurm_7_1"
    # Without an answer from SLURM it is unknown whether a job waits, but the content of the folder is shown.
    assert found.slurm and found.progress is not None


def test_why_a_run_ended_is_shown(make_run):
    run = make_run(12)
    with RunLock(run), suppress(RolloutError), NotedEnd(run):
        raise RolloutError("server 1 is lost; continue with `megacov resume RUN`.")
    found = read_status(run)
    assert (found.state.word, found.state.exit_code) == ("failed", 4)
    assert found.state.sentence == f"ended with code 4: {exit_meaning(4)}"
    assert shown(found)["why"] == "server 1 is lost; continue with `megacov resume RUN`."
    assert found.end is not None and found.end.reason == shown(found)["why"]
    # The launcher knows the code of the rank that ended first, and rank 0 the reason.
    settle_end(run, 137, since=found.end.time)
    found = read_status(run)
    assert found.state.sentence == "ended with code 137: it was ended by SIGKILL"
    assert shown(found)["why"].startswith("server 1 is lost")
    # A process that continues the run makes the old end void, also if it is killed before it can write its own.
    time.sleep(0.02)
    with RunLock(run):
        assert read_status(run).state.word == "training" and "why" not in shown(read_status(run))
    assert read_status(run).state.word == "stopped" and "why" not in shown(read_status(run))
    settle_end(run, 137, since=time.time())
    assert read_status(run).state.sentence == "ended with code 137: it was ended by SIGKILL"
    with RunLock(run), NotedEnd(run):
        pass
    assert read_status(run).state.sentence == "ended normally" and "why" not in shown(read_status(run))


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, '{"code": 4}', '{"code": "4", "reason": 1}', "null"])
def test_a_damaged_end_is_no_end(make_run, text):
    run = make_run(12)
    (run / ENDED_NAME).write_text(text)
    assert read_status(run).end is None and read_status(run).state.word == "stopped"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [(KeyboardInterrupt(), 130, ""), (SystemExit(143), 143, ""), (ValueError("two\nlines"), 1, "ValueError: two")],
)
def test_other_ends_are_noted_too(make_run, error, code, reason):
    run = make_run(12)
    with pytest.raises(type(error)), RunLock(run), NotedEnd(run):
        raise error
    end = read_status(run).end
    assert end is not None and (end.code, end.reason) == (code, reason)
    explain_end(run, RankError("rank 0 lost another rank."))
    end = read_status(run).end
    assert end is not None and (end.code, end.reason) == (8, "rank 0 lost another rank.")


def test_silence_is_longer_than_any_recent_step(make_run):
    run = make_run(0)
    status = resume_status(run, step=1)
    for step in range(1, 5):
        status.add_step(step, {"reward/mean": 0.5})
        time.sleep(0.05)
    time.sleep(0.3)
    with RunLock(run):
        found = read_status(run)
    assert found.progress is not None and found.progress.usual_s is not None
    assert 0.04 < found.progress.usual_s < found.progress.age_s
    assert shown(found)[""].startswith("silent for ")
    assert found.entropy is None and found.reward is not None


def test_steps_are_counted_where_not_all_are_logged(make_run):
    run = make_run(0)
    status = resume_status(run, step=5)
    for step in (5, 10, 15):
        status.add_step(step, {"reward/mean": 0.5})
    assert "; usually 5 steps in " in shown(read_status(run))["step"]


def test_a_resumed_run_shows_the_steps_that_it_repeats(make_run):
    run = make_run(12)
    status = resume_status(run, step=11)
    assert shown(read_status(run))["step"].startswith("10 of 20, ")
    status.add_step(11, {"reward/mean": 0.75, "entropy/token_mean": 1.5})
    lines = shown(read_status(run))
    assert lines["step"].startswith("11 of 20, ") and lines["reward"] == "0.7500, +0.7188 over 10 logged steps"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "status.json is empty"),
        ('{"format": 1, "logged": [{"st', "status.json is no whole JSON"),
        ('{"format": 9}', "it has format 9, and this version of megacov reads format 1"),
        (None, "status.json is missing"),
    ],
)
def test_an_unreadable_status_file_is_a_sentence_beside_what_else_is_known(make_run, content, words):
    run = make_run(12)
    if content is None:
        (run / STATUS_NAME).unlink()
    else:
        (run / STATUS_NAME).write_text(content)
    with RunLock(run):
        found = read_status(run)
    lines = shown(found)
    assert lines["step"].startswith("not known: ") and words in lines["step"]
    assert lines["checkpoint"].startswith("step 10, ") and found.state.word == "training" and "entropy" not in lines


def test_a_run_that_has_not_begun_needs_no_status_file(make_run):
    run = make_run(0)
    (run / STATUS_NAME).unlink()
    assert shown(read_status(run))["step"] == "none of 20 yet"


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (JOB, "7 is RUNNING on node[0-1], 1 h 0 min left"),
        (WAITS, "7 is PENDING, for 2 nodes, because of Priority"),
        (OVER, "7 is TIMEOUT with exit code 0 on node[0-1]"),
    ],
)
def test_the_job_is_one_line(make_run, job, text):
    assert shown(read_status(make_run(1), job))["job"] == text


def test_what_is_no_run_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="is not a run: give the folder of one"):
        read_status(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(DataError, match=r"does not hold run\.name and run\.steps"):
        read_status(tmp_path)


def test_the_command_prints_json_and_imports_no_torch(make_run):
    run = make_run(3)
    resume_status(run, step=4).add_step(4, {"reward/mean": 0.5, "entropy/token_mean": float("nan")})
    code = f"""
import sys
from megacov.cli.status import status
status({str(run)!r}, as_json=True)
heavy = {{"torch", "tensorboard", "google.protobuf", "numpy", "matplotlib", "transformers"}} & sys.modules.keys()
assert not heavy, heavy
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["name"] == "tiny" and found["state"]["word"] == "stopped" and found["progress"]["step"] == 4
    assert found["entropy"]["value"] is None and found["reward"]["value"] == 0.5
    missing = subprocess.run(
        [sys.executable, "-m", "megacov", "status", "runs/nowhere"], capture_output=True, text=True, cwd=ROOT
    )
    assert missing.returncode == DataError.exit_code and missing.stderr.count("\n") == 1
