"""`megacov report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacov.errors import DataError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, which may be training.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the page; default: RUN/report.html.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the samples in the page, at most; more make it larger.")
    ] = 200_000,
) -> None:
    """Write one HTML page that needs no network: charts, the law, samples with their tokens, configuration, alarms."""
    from megacov.files import write_atomically
    from megacov.monitor.report import gather_facts, render

    output = output or run / "report.html"
    target = output.resolve()  # a link stays, and so does a device
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise DataError(
            f"{output} is a device or a pipe, and a report replaces what was there: choose another --output."
        )
    text = render(gather_facts(run, max_tokens=max_tokens))
    try:
        write_atomically(target, text)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error.strerror}): choose another --output.") from error
    print(f"Report: {output} ({len(text.encode()) / 1e6:.1f} MB)")
