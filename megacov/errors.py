"""Errors a user can cause. Each ends the command with one sentence and its own exit code, never a traceback."""

from __future__ import annotations

import signal


class MegacovError(Exception):
    """Base of every error that the command line turns into one sentence.

    The message says what is wrong, which two values disagree, and what to change.

    is_echo: another rank has raised the same error and prints it; this rank ends without printing.
    """

    exit_code = 1
    is_echo = False


class ConfigError(MegacovError):
    """The configuration is impossible: unknown key, wrong type, or values that contradict each other."""

    exit_code = 2


class DataError(MegacovError):
    """A prompt file, a tokenizer, a model folder or a run folder is missing or does not fit."""

    exit_code = 3


class RolloutError(MegacovError):
    """A rollout server did not start, died, or gave an answer that it must not give."""

    exit_code = 4


class WeightSyncError(MegacovError):
    """New weights did not arrive whole on a rollout server."""

    exit_code = 5


class RewardError(MegacovError):
    """A verifier failed on too many responses, or could not be started again."""

    exit_code = 6


class NumericsError(MegacovError):
    """A loss, gradient or log-prob is not finite."""

    exit_code = 7


class RankError(MegacovError):
    """A rank died or stopped answering, so the others were stopped."""

    exit_code = 8


class CheckpointError(MegacovError):
    """A checkpoint cannot be written, or none can be loaded."""

    exit_code = 9


class SubmitError(MegacovError):
    """SLURM does not take the job, or does not answer."""

    exit_code = 10


class PreflightError(MegacovError):
    """A node of a job is not fit to run it."""

    exit_code = 11


class AlarmError(MegacovError):
    """An alarm that monitor.end_on names has ended the run."""

    exit_code = 12


class LawError(MegacovError):
    """The entropy law does not hold in a run, so its numbers must not be used."""

    exit_code = 13


class SweepError(MegacovError):
    """Some runs of a sweep have failed; the others are done."""

    exit_code = 14


class LeaveRequested(MegacovError):  # noqa: N818 - asked for, not an error
    """The run was asked to leave by SIGTERM or SIGUSR1, and has saved a checkpoint to continue from."""

    # EX_TEMPFAIL of <sysexits.h>: try again later.
    exit_code = 75


def exit_meaning(code: int) -> str:
    """Explain an exit code.

    Args:
        code: exit code of the command, or of the shell if a signal ended the command.

    Returns:
        A sentence without its full stop.
    """
    if code == 0:
        return "all is done"
    if code == 130:
        return "it was interrupted by Ctrl-C"
    if 128 < code < 128 + signal.NSIG:
        number = code - 128
        return (
            f"it was ended by {signal.Signals(number).name if number in list(signal.Signals) else f'signal {number}'}"
        )
    if code == MegacovError.exit_code:
        return "an error that megacov did not expect: see its log"
    kinds = {kind.exit_code: kind for kind in MegacovError.__subclasses__()}
    if code not in kinds:
        return "not an exit code of megacov: see its log"
    meaning = " ".join((kinds[code].__doc__ or "").split()).rstrip(".")
    return meaning if meaning[1].isupper() else meaning[0].lower() + meaning[1:]
