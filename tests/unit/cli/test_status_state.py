"""The state of a run, as its lock, its job and the attempts of its job tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megacov.checkpoint.lock import Holder
from megacov.cli.status_state import tell_state
from megacov.launch.attempts import Attempts
from megacov.launch.jobs import SlurmJob

JOB = SlurmJob("7", "7", "RUNNING", "", "node[0-1]", 2, 0, 3600, 0, ("/runs/x.sbatch", "0"))
WAITS = replace(JOB, state="PENDING", reason="Priority", nodes="", left_s=None)
OVER = replace(JOB, state="TIMEOUT", left_s=None)
HOLDER = Holder("process 9 on node0", slurm_job="7", since=200.0, is_held=True)
FREE = replace(HOLDER, is_held=False)
NONE = Attempts((), None, None, None)
ATTEMPT = Attempts((Path("/runs/x/logs/slurm_7_0"),), 100.0, None, None)


@pytest.mark.parametrize(
    ("holder", "job", "attempts", "word", "words"),
    [
        (HOLDER, JOB, ATTEMPT, "training", "process 9 on node0"),
        (HOLDER, None, NONE, "training", "process 9 on node0"),
        (HOLDER, JOB, replace(ATTEMPT, last_code=5), "leaving", "leaving with code 5: new weights did not arrive"),
        # The end of a second job, which was refused, says nothing about the one that holds the run.
        (replace(HOLDER, slurm_job="6"), JOB, replace(ATTEMPT, ended=3), "training", "process 9"),
        (None, JOB, ATTEMPT, "starting", "no process has locked the run yet"),
        (replace(FREE, since=50.0), JOB, ATTEMPT, "starting", "no process has locked the run yet"),
        (FREE, JOB, ATTEMPT, "training", "according to SLURM"),
        (FREE, JOB, replace(ATTEMPT, last_code=75), "leaving", "leaving with code 75: the run was asked to leave"),
        # The job has begun again, but has not made its log folder yet.
        (
            FREE,
            replace(JOB, restarts=1),
            replace(ATTEMPT, last_code=75),
            "starting",
            "no process has locked the run yet",
        ),
        (FREE, replace(JOB, restarts=1), ATTEMPT, "starting", "no process has locked the run yet"),
        (FREE, replace(JOB, state="COMPLETING"), NONE, "leaving", "completing"),
        (None, WAITS, NONE, "waiting", "waiting in the queue (Priority)"),
        (FREE, replace(WAITS, restarts=1), replace(ATTEMPT, last_code=75), "waiting", "requeued, and waiting"),
        (FREE, WAITS, replace(ATTEMPT, ended=2), "waiting", "waiting in the queue"),
        # Jobs that wait in a chain do nothing once the run has ended.
        (FREE, replace(WAITS, command=("x", "1")), replace(ATTEMPT, ended=2), "failed", "ended with code 2"),
        (FREE, OVER, replace(ATTEMPT, ended=0), "ended", "ended normally"),
        (FREE, OVER, ATTEMPT, "stopped", "its job is TIMEOUT"),
        (None, replace(OVER, state="FAILED", exit_code=3), NONE, "failed", "its job is FAILED with code 3 (a prompt "),
        (FREE, OVER, replace(ATTEMPT, last_code=75), "stopped", "ended with code 75"),
        (None, None, NONE, "not started", "not started"),
        (replace(FREE, is_held=None), None, NONE, "unknown", "cannot be locked here"),
    ],
)
def test_states(holder, job, attempts, word, words):
    state = tell_state(holder, job, attempts, is_certain=True, is_done=False)
    assert state.word == word
    assert words in state.sentence


def test_a_run_may_be_where_slurm_is_not():
    state = tell_state(None, None, NONE, is_certain=False, is_done=False)
    assert state.word == "unknown"
    assert tell_state(FREE, None, NONE, is_certain=False, is_done=True).word == "ended"
