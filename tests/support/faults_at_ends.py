"""Faults around the end of a run: nobody reads its output, its terminal closes, signals come again and again."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from tests.support.command import Ended, started, wait_for_line
from tests.support.faults import KL_COV, SETTINGS, STEPS, Outcome, final_weights, outcome


def output_closed(folder: Path, reference: bytes, *, hangup: bool) -> Outcome:
    """Folders that only people read are deleted, and nobody reads the output any more; then the terminal closes too."""
    pipe, shown = folder.with_suffix(".pipe"), ""
    os.mkfifo(pipe)
    with (
        os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader,
        started("train", KL_COV, *SETTINGS, f"run.directory={folder}", log=pipe) as process,
    ):
        while f"step 2/{STEPS}" not in shown:
            assert process.poll() is None, shown
            had_begun = f"step 1/{STEPS}" in shown
            shown += (reader.read(4096) or b"").decode()
            if not had_begun and f"step 1/{STEPS}" in shown:
                for name in ("tensorboard", "samples"):
                    shutil.rmtree(folder / name)
            time.sleep(0.02)
        reader.close()
        if hangup:
            wait_for_line(folder / "logs" / "output.log", f"step 3/{STEPS}", process)
            process.send_signal(signal.SIGHUP)
        code = process.wait(timeout=120)
    ended = Ended(code, shown + (folder / "logs" / "output.log").read_text(), [])
    if hangup:
        return outcome("terminal closed", folder, ended, reference)
    assert code == 0, ended.output
    return Outcome("stdout closed", "output.log", code, 0, False, final_weights(folder) == reference, ended.output)


def signalled_again(folder: Path, reference: bytes) -> Outcome:
    """A second SIGTERM, and a Ctrl-C, while step 4 is being saved."""
    arguments = ("train", KL_COV, *SETTINGS, f"run.directory={folder}")
    module, log = ("-m", "tests.support.fault_rank", "slow save", "1", "4"), folder.with_suffix(".log")
    with started(*arguments, log=log, module=module) as process:
        wait_for_line(log, f"step 4/{STEPS}", process)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            time.sleep(0.3)
        code = process.wait(timeout=60)
    return outcome("second SIGTERM", folder, Ended(code, log.read_text(), []), reference)
