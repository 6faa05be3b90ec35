"""Leaving on a signal: also where Python swallows the handler's exception, and where there is something to save."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from megacov.trainer.signals import SignalExit, leave_on_signals


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers of this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _code_left_with(action: Callable[[SignalExit], None]) -> object:
    def act() -> None:
        with leave_on_signals() as leaving:
            action(leaving)

    with pytest.raises(SystemExit) as exit_:
        act()
    return exit_.value.code


def test_the_first_signal_unwinds_and_the_second_is_ignored() -> None:
    def interrupted(leaving: SignalExit) -> None:
        del leaving
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    assert _code_left_with(interrupted) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_signal_makes_fail_does_not_hide_it() -> None:
    def closes_twice(leaving: SignalExit) -> None:
        del leaving
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except SystemExit:
            os.close(-1)  # as `shutil.rmtree` does if the signal comes right after its first close

    assert _code_left_with(closes_twice) == 128 + signal.SIGINT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_inside_a_finalizer_is_remembered() -> None:
    class Noisy:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(leaving: SignalExit) -> None:
        leaving.check()
        noisy = Noisy()
        del noisy  # Python prints the SystemExit and continues
        leaving.check()

    assert _code_left_with(interrupted) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], ids=lambda number: number.name)
def test_with_something_to_save_a_request_is_noted_once(
    number: signal.Signals, handlers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    del handlers
    interrupted: list[int] = []
    with leave_on_signals() as leaving:
        leaving.save_first(grace_s=60, interrupt=lambda: interrupted.append(1))
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # by the launcher too: no news
        others = [each for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP) if each != number]
        for repeated in (*others, signal.SIGINT):
            os.kill(os.getpid(), repeated)
        leaving.check()
        assert leaving.asked is number
        assert interrupted == [1]
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 3 and all(
            re.search(r"saving, with (60|59) s of checkpoint.grace_s left", line) for line in lines
        )
        assert "Ctrl-C twice" in lines[0] and "one more Ctrl-C" in lines[2]
    # No signal interrupts the shutdown of a process that has saved.
    for late in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), late)


def test_the_second_ctrl_c_ends_a_save(handlers: None) -> None:
    del handlers

    def interrupted(leaving: SignalExit) -> None:
        leaving.save_first(grace_s=60, interrupt=lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it still saves")

    assert _code_left_with(interrupted) == 128 + signal.SIGINT


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leave_on_signals() as leaving:
            leaving.save_first(grace_s=60, interrupt=lambda: None)
            os.kill(os.getpid(), signal.SIGHUP)
            assert leaving.asked is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_does_not_wait_for_a_save() -> None:
    def interrupted(leaving: SignalExit) -> None:
        leaving.save_first(grace_s=60, interrupt=lambda: None)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it waits for a save")

    assert _code_left_with(interrupted) == 128 + signal.SIGINT


def test_the_grace_has_an_end() -> None:
    program = """
        import os, signal, time
        from megacov.trainer.signals import leave_on_signals
        with leave_on_signals() as leaving:
            leaving.save_first(grace_s=0.2, interrupt=lambda: None)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(60)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 128 + signal.SIGUSR1
    assert "not saved within checkpoint.grace_s=0.2 seconds" in ended.stderr
