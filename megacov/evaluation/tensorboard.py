"""Scores of a run's checkpoints for TensorBoard, in a folder of their own below the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megacov.errors import DataError

FOLDER = Path("tensorboard", "evaluation")


def write_scalars(run: Path, values: Mapping[str, float], *, step: int) -> None:
    """Append the scores of one checkpoint, whatever steps others have been written for.

    The run's own event files are left alone: a training run may write to them now, and a later evaluation of an earlier
    step would cut them.

    Args:
        run: run folder.
        values: value by tag.
        step: step of the checkpoint.

    Raises:
        DataError: the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter  # imported here because it takes seconds

    folder = run / FOLDER
    try:
        with SummaryWriter(str(folder)) as writer:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
    except OSError as error:
        raise DataError(
            f"TensorBoard events cannot be written to {folder} ({error.strerror}): free space there."
        ) from error
