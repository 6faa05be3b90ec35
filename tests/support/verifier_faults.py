"""Faults of a verifier on real runs; `tests.support.faults` describes the runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.command import Ended, run, started, wait_for_line
from tests.support.faults import KL_COV, SETTINGS, STEPS, Outcome, final_weights, outcome
from tests.support.verifiers import FAULT_VARIABLE

_FAULTY = "rewards.verifier=tests.support.verifiers:sum_pairs_with_fault"
_RESPONSES_PER_STEP = 8 * 8


def verifier_fails(kind: str, folder: Path, reference: bytes, *, often: str) -> Outcome:
    """The verifier hangs, dies or returns nonsense on wrong responses, from the fourth step on.

    Wrong responses score 0 either way, so that the run must come out the same. Failing "once" is within what a run
    allows; "always" ends it.
    """
    settings = (_FAULTY, "rewards.timeout_s=1.0", f"run.directory={folder}")
    with _verifier_fault(kind, folder, often=often):
        ended = run("train", KL_COV, *SETTINGS, *settings, log=folder.with_suffix(".log"))
    if ended.code != 0:
        return outcome(f"verifier {kind}", folder, ended, reference)
    is_same = final_weights(folder) == reference
    warning = next(line for line in ended.output.splitlines() if "warning: step 4: the verifier" in line)
    return Outcome(
        f"verifier {kind}", warning.removeprefix("megacov: warning: "), 0, 0, bool(ended.left), is_same, ended.output
    )


def signalled_while_verifier_hangs(folder: Path, reference: bytes) -> Outcome:
    """SIGTERM while the fourth step waits for a verifier that never returns, far from its deadline."""
    log = folder.with_suffix(".log")
    settings = (_FAULTY, "rewards.timeout_s=1000.0", f"run.directory={folder}")
    with (
        _verifier_fault("hangs", folder, often="always"),
        started("train", KL_COV, *SETTINGS, *settings, log=log) as process,
    ):
        wait_for_line(log, f"step 3/{STEPS}", process)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    return outcome("SIGTERM while the verifier hangs", folder, Ended(code, log.read_text(), []), reference)


@contextmanager
def _verifier_fault(kind: str, folder: Path, *, often: str) -> Iterator[None]:
    """A fault of the verifier in commands that are started inside, from the fourth step on."""
    mark = folder.with_suffix(".mark")
    os.environ[FAULT_VARIABLE] = f"{kind} {3 * _RESPONSES_PER_STEP} {mark} {often}"
    try:
        yield
    finally:
        del os.environ[FAULT_VARIABLE]
