"""The `megacov` command. Verbs import heavy packages inside their functions, so that `--help` answers at once."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, NoReturn

import typer

from megacov import __version__
from megacov.cli import (
    check,
    compare,
    data,
    doctor,
    evaluate,
    export,
    launch,
    make_prompts,
    predict,
    report,
    resume,
    samples,
    schema,
    serve,
    status,
    sweep,
    train,
)
from megacov.errors import DataError, MegacovError
from megacov.launch.output import keep_output, lost_for
from megacov.monitor.visible_text import visible

app = typer.Typer(
    name="megacov",
    help="Reinforcement learning on Megatron-Core, with exact and global control of token entropy.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A user's mistake ends in one sentence. A traceback is always a defect of megacov, and a plain one is best then.
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(resume.resume)
app.command()(serve.serve)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(make_prompts.make_prompts)
app.command()(check.check)
app.command()(launch.launch)
app.command()(sweep.sweep)
app.command()(status.status)
app.command()(data.data)
app.command()(samples.samples)
app.command()(compare.compare)
app.command()(report.report)
app.command()(predict.predict)
app.command()(doctor.doctor)
app.command()(schema.schema)


def main() -> None:
    """Run one verb and exit: 0, or the error's own code after one sentence on stderr, or 130 after Ctrl-C."""
    keep_output()
    try:
        app(prog_name="megacov")
    except MegacovError as error:
        _end_with(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        start = str(error.filename)[:60]
        _end_with(DataError(f"No file can have the name {start}..., which is too long: give a shorter one."))
    except SystemExit as ended:
        if ended.code or not (reason := lost_for()):
            raise
        lost = "what the command did stands, but its text is lost: make room."
        _end_with(DataError(f"Standard output was not written whole ({reason}); {lost}"))


def _end_with(error: MegacovError) -> NoReturn:
    if not error.is_echo:
        print("\n".join(map(visible, f"megacov: {error}".split("\n"))), file=sys.stderr)  # names may hold anything
    sys.exit(error.exit_code)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"megacov {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    # The options of the command itself; its help text is the app's.
    del version
