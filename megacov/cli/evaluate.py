"""megacov evaluate: the scores of a run, a checkpoint or a model on the sets of a suite."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacov.config.addresses import check_addresses
from megacov.config.messages import show
from megacov.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from megacov.evaluation.report import Report
    from megacov.evaluation.servers import ServerSettings
    from megacov.rollout.fleet.keys import ServerKeys

_LOG_WIDTH = 120
"""Columns of the tables where there is no terminal."""
_EMBEDDED_REQUESTS, _FLEET_REQUESTS = 4, 256


class Dtype(StrEnum):
    """Dtype of the weights in the embedded server."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class Target:
    """A subject of an evaluation.

    name: in the report and in the folder of the results.
    model: model folder; None for a checkpoint, which must be exported first.
    run, step: run folder and step of a checkpoint.
    """

    name: str
    model: Path | None
    run: Path | None = None
    step: int = 0


_Subject = Annotated[
    Path,
    typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="Run folder (its newest checkpoint), step_N folder, or model."),
]
_Suite = Annotated[str, typer.Option(help="YAML file of the suite, or a name such as paper.")]
_Out = Annotated[
    Path | None, typer.Option(help="Folder of the results; in the run folder, or in evaluations/, otherwise.")
]
_Servers = Annotated[
    list[str] | None, typer.Option(metavar="URL", help="Running server that holds the model; may be repeated.")
]
_Keys = Annotated[Path | None, typer.Option(help="YAML file with api-key and admin-api-key of running servers.")]
_Data = Annotated[
    Path | None, typer.Option(envvar="MEGACOV_DATA", help="Folder in which the files of sets are looked for first.")
]
_Only = Annotated[list[str] | None, typer.Option(metavar="SET", help="Set of the suite to evaluate; may be repeated.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="Problems of each set, from the first.")]
_AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave out sets whose files are missing; the report names them.")
]
_Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of sampling and of the intervals.")]
_Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Requests in flight: 4 for the embedded server and 256 for others.")
]
_RequestTimeout = Annotated[float, typer.Option(min=1.0, help="Deadline of one request.")]
_StartTimeout = Annotated[
    float, typer.Option(min=1.0, help="Deadline for a server to answer at the start, or after it was lost.")
]
_Dtype = Annotated[Dtype, typer.Option(help="Dtype of the embedded server.")]
_Threads = Annotated[int, typer.Option(min=1, help="Compute threads of the embedded server.")]
_Fast = Annotated[
    bool, typer.Option("--fast", help="The embedded server batches requests: faster, and not equal bit by bit.")
]


def evaluate(
    target: _Subject,
    suite: _Suite,
    out: _Out = None,
    server: _Servers = None,
    keys: _Keys = None,
    data: _Data = None,
    only: _Only = None,
    limit: _Limit = None,
    allow_missing: _AllowMissing = False,
    seed: _Seed = 0,
    concurrency: _Concurrency = None,
    request_timeout_s: _RequestTimeout = 3600.0,
    start_timeout_s: _StartTimeout = 300.0,
    dtype: _Dtype = Dtype.FLOAT32,
    num_threads: _Threads = 1,
    fast: _Fast = False,
) -> None:
    """Score a model on sets of problems, with intervals. An evaluation that was stopped goes on where it stopped."""
    from megacov.evaluation.servers import ServerSettings
    from megacov.evaluation.suite import find_suite, load_suite

    checked = load_suite(find_suite(suite))
    found = find_target(target)
    settings = ServerSettings(
        addresses=_addresses(server or [], found),
        keys=_keys(keys, has_servers=bool(server)),
        dtype=dtype.value,
        num_threads=num_threads,
        deterministic=not fast,
        max_concurrency=concurrency or (_FLEET_REQUESTS if server else _EMBEDDED_REQUESTS),
        request_timeout_s=request_timeout_s,
        start_timeout_s=start_timeout_s,
    )
    out = out or _default_out(found, f"{checked.name}-seed_{seed}")
    model = found.model or _export(found, out)
    from megacov.evaluation.evaluate import Evaluation
    from megacov.evaluation.evaluate import evaluate as run_evaluation

    wanted = Evaluation(
        name=found.name,
        model=model,
        vocab_size=_vocab_size(model),
        suite=checked,
        servers=settings,
        out=out,
        seed=seed,
        data=data,
        only=tuple(only or ()),
        limit=limit,
        allow_missing=allow_missing,
    )
    report = run_evaluation(wanted)
    _show(report, settings, out)
    _finish(found, model, report)


def find_target(path: Path) -> Target:
    """Find out what a path is.

    Args:
        path: run folder, folder of a checkpoint, model folder, or id of a model on the Hub.

    Returns:
        What is evaluated; the newest checkpoint of a run. A model of the Hub is downloaded.

    Raises:
        DataError: it is none of them.
        CheckpointError: the run has no checkpoint.
    """
    from megacov.checkpoint import CheckpointStore
    from megacov.plan.hub import download_model, hub_id

    model_id = hub_id(path)
    if model_id is not None:
        return Target(model_id.replace("/", "--"), download_model(model_id, None))
    if (path / "config.json").is_file():
        return Target(path.resolve().name, path)
    is_step = re.fullmatch(r"step_([0-9]+)", path.name)
    run = path.absolute().parent.parent if is_step else path
    if not (run / "config.yaml").is_file():
        raise DataError(
            f"{path} is no run folder (with config.yaml), no checkpoint of one (RUN/checkpoints/step_N) and no model "
            "folder (with config.json): correct the path."
        )
    if is_step:
        return Target(f"{run.resolve().name}-step_{int(is_step[1])}", None, run, int(is_step[1]))
    candidates = CheckpointStore(run).find().candidates
    steps = [int(named[1]) for each in candidates if (named := re.fullmatch(r"step_([0-9]+)", each.name))]
    if not steps:
        raise CheckpointError(f"{run} has no checkpoint yet: set checkpoint.every, or wait for the first.")
    return Target(f"{run.resolve().name}-step_{steps[0]}", None, run, steps[0])


def _addresses(urls: list[str], target: Target) -> tuple[str, ...]:
    if urls and target.model is None:
        raise ConfigError(
            f"--server needs a model folder whose weights the servers hold, and {target.name} is a checkpoint: run "
            "`megacov export` first, and start the servers with its folder."
        )
    try:
        if not all(url.isprintable() for url in urls):  # urlsplit, and so the check, leaves line breaks out
            raise ValueError("write it without line breaks.")
        return check_addresses(tuple(urls))
    except ValueError as error:
        raise ConfigError(f"--server is {show(', '.join(urls))}: {error}") from error


def _keys(path: Path | None, *, has_servers: bool) -> ServerKeys:
    from megacov.rollout.fleet.keys import ServerKeys, read_keys

    if path is None:
        return ServerKeys()
    if not has_servers:
        raise ConfigError("--keys is given without --server: the embedded server needs no keys.")
    return read_keys(path, setting="--keys")


def _default_out(target: Target, label: str) -> Path:
    if target.run is not None:
        return target.run / "evaluations" / f"step_{target.step}-{label}"
    return Path("evaluations") / f"{target.name}-{label}"


def _export(target: Target, out: Path) -> Path:
    """Export a checkpoint into the folder of the results. An evaluation that was stopped has left it there, whole."""
    assert target.run is not None
    folder = out / f"model_step_{target.step}"
    if not folder.is_dir():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as `megacov export` does: the run may use the GPUs
        from megacov.trainer.saving.export import export_run

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out} cannot be made ({error.strerror}): name another folder with --out.") from error
        print(f"megacov: the checkpoint of step {target.step} is exported to {folder}.", flush=True)
        export_run(target.run, folder, step=target.step, dtype=None)
    return folder


def _vocab_size(model: Path) -> int:
    from megacov.plan.model_sizes import read_model_values

    size = read_model_values(model / "config.json").get("vocab_size")
    if type(size) is not int or size < 1:
        raise DataError(f"{model / 'config.json'} has vocab_size {show(size)}: give the folder of a language model.")
    return size


def _show(report: Report, settings: ServerSettings, out: Path) -> None:
    from rich.console import Console

    from megacov.evaluation.report import details_table, paper_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    console.print(paper_table(report))
    console.print(details_table(report))
    if report.missing:
        print(f"megacov: left out, since their files are missing: {', '.join(report.missing)}", file=sys.stderr)
    if not settings.follows_seeds:
        print("megacov: the servers follow no seeds; another evaluation gives other scores within the intervals.")
    console.print(f"Results: {out / 'results.json'}", soft_wrap=True, highlight=False)


def _finish(target: Target, model: Path, report: Report) -> None:
    """For a checkpoint: remove its export, and write the scores for TensorBoard."""
    if target.run is None:
        return
    from megacov.evaluation.report import scalars
    from megacov.evaluation.tensorboard import write_scalars

    shutil.rmtree(model, ignore_errors=True)
    write_scalars(target.run, scalars(report.scores), step=target.step)
