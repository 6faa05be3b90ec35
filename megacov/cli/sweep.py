"""megacov sweep: train many settings and seeds, and find the best of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacov.errors import ConfigError, LeaveRequested, SweepError

if TYPE_CHECKING:
    from megacov.cli.sweep_slurm import SlurmPlace
    from megacov.config.sweep import SweepSection
    from megacov.sweep.drive import FixedRuns
    from megacov.sweep.folder import SweepFolder
    from megacov.sweep.setting import Setting, SweepRun
    from megacov.sweep.study import StudyRuns

_LOG_WIDTH = 120
"""Columns of the table where there is no terminal."""
_LOCAL_POLL_S, _SLURM_POLL_S = 0.2, 5.0


def sweep(
    config: Annotated[Path, typer.Argument(metavar="SWEEP", help="YAML file of the sweep.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the sweep's own settings, as in seeds=[0,1].")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all settings and show them; start nothing.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Start runs that failed again.")] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit runs as SLURM arrays, show what is over, and end.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --slurm: wait for the jobs, until all are over.")] = False,
    site: Annotated[Path | None, typer.Option(help="With --slurm: file of the cluster, as for `launch`.")] = None,
) -> None:
    """Train many settings, each with several seeds; a sweep that was stopped goes on where it stopped.

    Writes table.csv, sweep.png and best.yaml, which `megacov train` takes, to the folder of the sweep.
    """
    from megacov.config import load_sweep
    from megacov.launch import rank_from_environment
    from megacov.launch.process import noted_signals
    from megacov.sweep.drive import CaughtSignals, drive
    from megacov.sweep.folder import SweepFolder
    from megacov.sweep.local import LocalPlace

    if rank_from_environment() is not None:
        raise ConfigError("megacov sweep starts the ranks of its runs itself: call it once, without torchrun or srun.")
    found = load_sweep(config, overrides or [])
    if retry_failed and found.search.name == "optuna":
        raise ConfigError("--retry-failed is for grids and lists: raise search.trials for Optuna to try more settings.")
    if (wait or site) and not slurm:
        raise ConfigError(f"{'--wait' if wait else '--site'} is for runs on SLURM: add --slurm.")
    is_study = found.search.name == "optuna"
    if slurm and not is_study:
        found = found.model_copy(update={"at_once": found.num_runs})  # SLURM has a queue of its own
    settings = _settings_to_check(found)
    _check_objective(found, settings)
    if dry_run:
        _show(found, settings)
        return
    folder = SweepFolder(found.directory)
    with folder.held():
        source = _source(found, folder, settings, retry_failed=retry_failed)
        place = _slurm_place(folder, site) if slurm else LocalPlace(folder, timeout_s=found.timeout_s)
        caught = CaughtSignals()
        with noted_signals(caught.note):
            drive(
                source,
                place,
                folder,
                caught,
                at_once=found.at_once,
                poll_s=_SLURM_POLL_S if slurm else _LOCAL_POLL_S,
                tell=_tell,
                waits=wait or not slurm,
            )
        failed = report(found, folder, source)
    _end(caught.first, failed, folder.path)


def _slurm_place(folder: SweepFolder, site: Path | None) -> SlurmPlace:
    from megacov.cli.sweep_slurm import SlurmPlace
    from megacov.launch.site import Site, read_site

    return SlurmPlace(folder, read_site(site) if site else Site())


def _settings_to_check(found: SweepSection) -> Sequence[Setting]:
    """All settings of a grid or a list; of a search by Optuna, those of the smallest and the largest values."""
    if found.search.name == "optuna":
        _need_optuna()
        from megacov.sweep.study import check_corners

        return check_corners(found)
    from megacov.sweep.setting import fixed_settings

    return fixed_settings(found)


def _source(
    found: SweepSection, folder: SweepFolder, settings: Sequence[Setting], *, retry_failed: bool
) -> FixedRuns | StudyRuns:
    """The runs of the sweep, with the configuration of each in the folder."""
    from megacov.sweep.drive import FixedRuns
    from megacov.sweep.setting import runs_of

    if found.search.name == "optuna":
        from megacov.sweep.study import StudyRuns

        return StudyRuns(found, folder)
    for each in settings:
        folder.keep_setting(each)
    runs = list(runs_of(settings, found.seeds))
    for run in runs if retry_failed else ():
        folder.forget_failure(run)
    return FixedRuns(runs, settings)


def _check_objective(found: SweepSection, settings: Sequence[Setting]) -> None:
    """Refuse a score that the evaluations of the settings do not have."""
    from megacov.config.sweep import EvaluationObjective
    from megacov.evaluation.suite import find_suite, load_suite

    objective = found.objective
    if not isinstance(objective, EvaluationObjective):
        return
    for suite in dict.fromkeys(each.config.evaluation.suite for each in settings):
        assert suite is not None, "a setting without one is refused"
        sets = {each.name: each for each in load_suite(find_suite(suite)).sets}
        if objective.set not in sets:
            names = ", ".join(sets)
            raise ConfigError(f"objective.set is {objective.set}, and the suite {suite} has {names}: name one.")
        chosen = sets[objective.set]
        scores = [f"avg@{chosen.samples}", *(f"pass@{k}" for k in chosen.pass_at), *(f"maj@{k}" for k in chosen.maj_at)]
        if objective.score not in scores:
            raise ConfigError(
                f"objective.score is {objective.score}, and the set {objective.set} has {', '.join(scores)}: name one."
            )


def _need_optuna() -> None:
    missing = [name for name in ("optuna", "sqlalchemy") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"search.name is optuna, and {missing[0]} is not installed: pip install 'megacov[sweep]', or search a grid."
        )


def _show(found: SweepSection, settings: Sequence[Setting]) -> None:
    """Print the settings."""
    for each in settings:
        print(f"{each.name}: {', '.join(f'{key}={value}' for key, value in each.changes.items()) or 'the base'}")
    many = f"{found.search.num_settings} settings, {found.num_runs} runs"
    print(f"{many}, {found.at_once} at once, in {found.directory}")


def report(found: SweepSection, folder: SweepFolder, source: FixedRuns | StudyRuns) -> int:
    """Print the table and write the files of results.

    Args:
        found: the sweep.
        folder: its folder.
        source: its runs.

    Returns:
        How many runs failed, and trials without a run.

    Raises:
        DataError: the disk refuses a file.
    """
    from rich.console import Console

    from megacov.monitor.visible_text import visible
    from megacov.sweep.figure import write_figure
    from megacov.sweep.results import failures, find_best, read_results, render_best, render_csv, render_table

    results = read_results(found, folder, source.settings)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    console.print(render_table(found, results))
    for result in results:
        for each in result.runs:
            if each.value is not None and each.value.problem:
                console.print(f"warning: {visible(each.value.problem)}", soft_wrap=True, highlight=False, markup=False)
    failed = {**failures(results), **source.problems}
    for name, reason in failed.items():
        console.print(f"failed: {name} {visible(reason)}", soft_wrap=True, highlight=False, markup=False)
    written = [folder.write("table.csv", render_csv(found, results))]
    best = find_best(results)
    if best is not None:
        written.append(folder.write("best.yaml", render_best(found, best)))
        console.print(f"Best: {best.setting.name}", soft_wrap=True, highlight=False)
    if any(result.values() for result in results):
        write_figure(found, results, folder.path / "sweep.png")
        written.append(folder.path / "sweep.png")
    console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True, highlight=False)
    return len(failed)


def _tell(run: SweepRun, what: str) -> None:
    from megacov.monitor.visible_text import visible

    print(f"{time.strftime('%H:%M:%S')} {run.name}: {visible(what)}", flush=True)


def _end(number: int | None, failed: int, folder: Path) -> None:
    """Raise what the command ends with, if it is not success."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number is not None:
        raise LeaveRequested(f"asked to leave: the same command continues the sweep in {folder}.")
    if failed:
        raise SweepError(
            f"{failed} run{'s' * (failed > 1)} of the sweep failed, as listed above, and the others went on: look into "
            f"{folder / 'logs'}, and add --retry-failed to start them again."
        )
