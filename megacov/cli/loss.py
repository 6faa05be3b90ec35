"""The check of a loss that is imported, before anything is started or submitted."""

from __future__ import annotations

import sys
from pathlib import Path

from megacov.config import RunConfig
from megacov.config.loss_section import ImportedLoss


def check_imported_loss(config: RunConfig) -> None:
    """Import the loss, where it is not one of megacov's own, and check its signature, its hyperparameters, and a call.

    Losses need torch, which a login node may lack. A line on stderr then reports it, and ranks check the loss.

    Args:
        config: any.

    Raises:
        ConfigError: what is wrong with the loss.
    """
    if not isinstance(config.algorithm.loss, ImportedLoss):
        return
    try:
        from megacov.trainer.algorithm import resolve_loss
    except (ImportError, OSError) as error:
        name = config.algorithm.loss.name
        why = f"{error.name} is not installed here" if isinstance(error, ModuleNotFoundError) else str(error)
        print(
            f"megacov: algorithm.loss.name {name} is not checked, since {why}",
            file=sys.stderr,
        )
        return
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        # Ranks run `python -m megacov`, which looks for modules in the working folder too.
        sys.path.insert(0, folder)
    resolve_loss(config)
