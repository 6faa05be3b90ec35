"""megacov export: the policy of a run as a Hugging Face model folder."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from megacov.errors import DataError


class Dtype(StrEnum):
    """Dtype of the exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest good one otherwise.")] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights; otherwise that of the model the run began with.")
    ] = None,
) -> None:
    """Write a run's policy as a model folder that transformers and SGLang load. Needs no GPU."""
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run} has no config.yaml: give the folder of a run, such as runs/NAME.")
    # One process reads one parameter at a time, and may do so on a login node or beside a run that uses the GPUs.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from megacov.trainer.saving.export import export_run

    done = export_run(run, out, step=step, dtype=None if dtype is None else dtype.value)
    print(f"{out}: the policy after step {done.step}, {done.num_bytes / 1e6:,.1f} MB in {done.dtype}")
