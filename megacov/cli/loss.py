"""The check of a loss that is imported, before anything is started or submitted."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from megacov.config import RunConfig
from megacov.config.loss_section import ImportedLoss


def check_imported_loss(config: RunConfig) -> None:
    """Import the run's loss, if it is one to import, and check its signature, its hyperparameters, and a call.

    Losses need torch. A login node may lack it, and then says so on stderr: the trainer checks again.

    Args:
        config: any.

    Raises:
        ConfigError: what is wrong with the loss.
    """
    if not isinstance(config.algorithm.loss, ImportedLoss):
        return
    if find_spec("torch") is None:
        name = config.algorithm.loss.name
        print(f"megacov: algorithm.loss.name {name} is not checked, since torch is not installed here", file=sys.stderr)
        return
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        # Ranks run `python -m megacov`, which looks for modules in the working folder too.
        sys.path.insert(0, folder)
    from megacov.trainer.algorithm import resolve_loss

    resolve_loss(config)
