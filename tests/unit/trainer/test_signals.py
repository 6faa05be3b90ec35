"""Leaving on a signal, also where Python swallows what the handler raises."""

from __future__ import annotations

import os
import signal

import pytest

from megacov.trainer.signals import leave_on_signals


def test_the_first_signal_unwinds_and_the_second_is_ignored() -> None:
    def interrupted() -> None:
        with leave_on_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        interrupted()
    assert exit_.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_inside_a_finalizer_is_remembered() -> None:
    class Noisy:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with leave_on_signals() as leaving:
        leaving.check()
        noisy = Noisy()
        del noisy  # Python prints the SystemExit and goes on
        with pytest.raises(SystemExit) as exit_:
            leaving.check()
    assert exit_.value.code == 128 + signal.SIGTERM
