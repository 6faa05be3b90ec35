"""Methods of steering the entropy on equal terms: each is tuned with the same budget, then trained with several seeds.

Run: python -m benchmarks.comparison [--task sum_pairs] [--only METHOD ...] [--render] [--page docs/methods.md]

The command may be stopped, or killed, at any moment; the same command continues. docs/methods.md describes it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.comparison_figure import write_figure
from benchmarks.comparison_page import fill_page, render_table
from benchmarks.comparison_plan import PLAN, ROOT, TaskSweeps, read_plan, write_sweep
from benchmarks.comparison_results import read_best, read_methods, render_csv
from megacov.cli.sweep import sweep as run_sweep
from megacov.config.sweep import SweepSection
from megacov.errors import DataError, MegacovError, SweepError
from megacov.files import write_atomically


def train(sweeps: TaskSweeps, methods: Iterable[str], *, retry_failed: bool) -> list[str]:
    """Tune each method and train its best value with all seeds, one method after the other.

    Args:
        sweeps: the sweeps of a task.
        methods: methods to train, in this order.
        retry_failed: whether runs that failed start again.

    Returns:
        What failed, one sentence each.
    """
    failed: list[str] = []
    for method in methods:
        tuning = sweeps.tuning(method)
        _run(tuning, failed, retry_failed=retry_failed)
        best = read_best(tuning)
        if best is None:
            failed.append(f"{method}: no value could be trained, so it has no final runs.")
            continue
        _run(sweeps.final(method, sweeps.tuned(method).values[best]), failed, retry_failed=retry_failed)
    return failed


def _run(sweep: SweepSection, failed: list[str], *, retry_failed: bool) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sweep.directory}", flush=True)
    try:
        run_sweep(write_sweep(sweep), retry_failed=retry_failed)
    except SweepError as error:
        failed.append(f"{sweep.name}: {error}")


def render(sweeps: TaskSweeps, page: Path | None) -> None:
    """Write the tables and the figure of all methods that have results.

    Args:
        sweeps: the sweeps of a task.
        page: page of the docs whose part about the task is replaced; its figure goes into `figures` beside it.
    """
    methods = read_methods(sweeps)
    table = render_table(sweeps, methods)
    try:
        sweeps.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(sweeps.folder / "runs.csv", render_csv(sweeps, methods))
        write_atomically(sweeps.folder / "table.md", table)
    except OSError as error:
        raise DataError(f"{sweeps.folder} cannot be written ({error.strerror}): choose another --folder.") from error
    print(table)
    figure = None
    if any(method.count("done") for method in methods):
        write_figure(sweeps, methods, sweeps.folder / "comparison.png")
        if page is not None:
            figure = page.parent / "figures" / f"methods_{sweeps.name}.png"
            write_figure(sweeps, methods, figure)
    if page is not None:
        fill_page(page, sweeps.name, table, figure)


def _guarded(work: Callable[[], None]) -> None:
    try:
        work()
    except MegacovError as error:
        print(f"comparison: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Train what is missing, unless only the results are wanted, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sum_pairs", help="task of the plan")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="train these methods alone")
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"), help="folder of all tasks")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--retry-failed", action="store_true", help="start runs that failed again")
    parser.add_argument("--render", action="store_true", help="train nothing; table and figure from what there is")
    parser.add_argument("--page", type=Path, help="page of the docs whose table and figure are replaced")
    options = parser.parse_args()

    def work() -> None:
        plan = read_plan(options.plan)
        if options.task not in plan.tasks:
            parser.error(f"--task is {options.task}, and the plan has {', '.join(plan.tasks)}")
        sweeps = TaskSweeps(plan, options.task, options.folder.absolute() / options.task)
        unknown = set(options.only or ()) - set(sweeps.entries)
        if unknown:
            parser.error(f"--only has {', '.join(sorted(unknown))}, and the task has {', '.join(sweeps.entries)}")
        methods = options.only or sweeps.entries
        failed = [] if options.render else train(sweeps, methods, retry_failed=options.retry_failed)
        render(sweeps, options.page)
        if failed:
            print("failed:", *failed, sep="\n  ", file=sys.stderr)
            sys.exit(SweepError.exit_code)

    if not ROOT.samefile(Path.cwd()):
        parser.error(f"runs name files of {ROOT} by relative paths: call the command there")
    _guarded(work)


if __name__ == "__main__":
    main()
