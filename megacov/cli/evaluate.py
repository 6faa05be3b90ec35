"""megacov evaluate: the scores of a run, a checkpoint or a model on the sets of a suite."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacov.config.addresses import check_addresses
from megacov.config.messages import show
from megacov.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megacov.cli.evaluation_target import Target
    from megacov.config.suite import SuiteSection
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
_StopTokenIds = Annotated[
    list[int] | None,
    typer.Option("--stop-token-id", min=0, help="Token that ends a response; of a run, its rollout.stop_token_ids."),
]
_AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let the verifier code run the programs of responses on this machine.")
]
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
    stop_token_id: _StopTokenIds = None,
    allow_code: _AllowCode = False,
    concurrency: _Concurrency = None,
    request_timeout_s: _RequestTimeout = 3600.0,
    start_timeout_s: _StartTimeout = 300.0,
    dtype: _Dtype = Dtype.FLOAT32,
    num_threads: _Threads = 1,
    fast: _Fast = False,
) -> None:
    """Score a model on sets of problems, with intervals. An evaluation that was stopped goes on where it stopped."""
    from megacov.cli.evaluation_target import export, find_target, stop_token_ids
    from megacov.evaluation.servers import ServerSettings
    from megacov.evaluation.suite import find_suite, load_suite

    checked = load_suite(find_suite(suite))
    _refuse_code(checked, only or (), allow_code=allow_code)
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
    model = _own_folder(found.model, out) if found.model else export(found, out)
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
        stop_token_ids=stop_token_ids(stop_token_id, found),
    )
    report = run_evaluation(wanted)
    _show(report, settings, out)
    _finish(found, model, report)


def _refuse_code(suite: SuiteSection, only: Sequence[str], *, allow_code: bool) -> None:
    """Whoever starts an evaluation decides whether programs that nobody has read may run on this machine."""
    from megacov.config.reward_rules import find_code

    for each in suite.sets:
        place = next(find_code(f"the verifier of the set {each.name}", each.verifier, each.verifier_arguments), None)
        if place is not None and not allow_code and (not only or each.name in only):
            raise ConfigError(
                f"{place} is code, which runs the programs of responses on this machine: read "
                "docs/code_and_judges.md and add --allow-code, or choose other sets with --only."
            )


def _own_folder(model: Path, out: Path) -> Path:
    if out.resolve() == model.resolve():
        raise ConfigError(
            f"--out is {out}, the model's own folder, whose files identify the model: name another folder."
        )
    return model


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
    console.print(f"Results: {out / 'results.json'}", soft_wrap=True, highlight=False, markup=False)


def _finish(target: Target, model: Path, report: Report) -> None:
    """For a checkpoint: remove its export, and write the scores for TensorBoard."""
    if target.run is None:
        return
    from megacov.evaluation.report import scalars
    from megacov.evaluation.tensorboard import write_scalars

    shutil.rmtree(model, ignore_errors=True)
    write_scalars(target.run, scalars(report.scores), step=target.step)
