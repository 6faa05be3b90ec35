"""The tables of benchmarks/comparison.py in Markdown, and the page of the docs that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison_plan import TaskSweeps
from benchmarks.comparison_results import Method, mean, number_names, relative_costs, spread
from megacov.errors import DataError
from megacov.files import write_atomically

_HEADINGS = {
    "reward": "reward at the end",
    "area": "area under reward",
    "entropy": "entropy at the end",
}


def render_table(sweeps: TaskSweeps, methods: Sequence[Method]) -> str:
    """Write the table of the final runs, that of the tuning, and what is missing.

    Args:
        sweeps: the sweeps of the task.
        methods: what `read_methods` returns.

    Returns:
        Markdown.
    """
    parts = [_final_lines(sweeps, methods), _state_lines(methods), _tuning_lines(methods)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _final_lines(sweeps: TaskSweeps, methods: Sequence[Method]) -> list[str]:
    task = sweeps.task
    names = [name for name in number_names(sweeps) if name != "step_s"]
    headings = {**_HEADINGS, "entropy_at_reward": f"entropy at reward {task.reward:g}"}
    shown = [headings.get(name, f"{name} at the end") for name in names]
    costs = relative_costs(methods)
    if not any(method.count("done") for method in methods):
        return []
    lines = [_row("method", "best value", "seeds", *shown, "cost of a step"), _row(*["---"] * (len(names) + 4))]
    for method in methods:
        if method.best is None or not method.count("done"):
            continue
        cells = []
        for name in names:
            values = method.values(name)
            reached = "" if len(values) == method.count("done") else f" ({len(values)} of {method.count('done')})"
            cells.append(_cell(values) + reached if values else "not reached" if name == "entropy_at_reward" else "-")
        cost = _cell(costs[method.name], digits=2) if costs.get(method.name) else "-"
        lines.append(_row(method.name, _best(method), str(method.count("done")), *cells, cost))
    return lines


def _tuning_lines(methods: Sequence[Method]) -> list[str]:
    """Area under the reward, and entropy at the end, of each value that was tried; the best one in bold."""
    lines = [_row("method", "hyperparameter", "values: area under reward, entropy at the end"), _row(*["---"] * 3)]
    for method in methods:
        if all(row.state == "waiting" for row in method.tuning):
            continue
        cells = []
        for place, row in enumerate(method.tuning):
            found = row.state
            if "area" in row.numbers:
                found = f"{row.numbers['area']:.3f}, {row.numbers['entropy']:.2f}"
            cells.append(f"**{row.value:g}: {found}**" if place == method.best else f"{row.value:g}: {found}")
        lines.append(_row(method.name, ", ".join(f"`{key}`" for key in method.keys), "; ".join(cells)))
    return lines if len(lines) > 2 else []


def _state_lines(methods: Sequence[Method]) -> list[str]:
    """How long the runs took, and which have failed or are still to come."""
    runs = [row for method in methods for row in (*method.tuning, *method.final) if row.state != "waiting"]
    lines = [f"{len(runs)} runs took {sum(row.seconds for row in runs) / 60:.0f} minutes."]
    for method in methods:
        failed = [f"{row.value:g}" for row in method.tuning if row.state in ("failed", "unreadable")]
        failed += [f"seed {row.seed}" for row in method.final if row.state in ("failed", "unreadable")]
        if failed:
            lines.append(f"{method.name} failed with {', '.join(failed)}.")
    waiting = [each.name for each in methods if any(row.state == "waiting" for row in (*each.tuning, *each.final))]
    if waiting:
        lines.append(f"Not all runs are over yet: {', '.join(waiting)}.")
    return lines


def _best(method: Method) -> str:
    assert method.best is not None
    return f"{method.tuning[method.best].value:g}"


def _cell(values: Sequence[float], *, digits: int = 3) -> str:
    middle, width = mean(values), spread(values)
    return f"{middle:.{digits}f}" + ("" if width is None else f" +- {width:.{digits}f}")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def fill_page(page: Path, task: str, table: str, figure: Path | None) -> None:
    """Replace what stands between two comments of a page, `<!-- TASK: begin -->` and `<!-- TASK: end -->`.

    Args:
        page: page of the docs.
        task: name of the task.
        table: Markdown.
        figure: picture that is shown below it, in a folder beside the page; None for none.

    Raises:
        DataError: the page cannot be read, or lacks one of the comments.
    """
    begin, end = f"<!-- {task}: begin -->\n", f"<!-- {task}: end -->"
    shown = f"![Methods on {task}]({figure.relative_to(page.parent)})\n\n" if figure else ""
    try:
        text = page.read_text(encoding="utf-8")
        before, found, rest = text.partition(begin)
        _, also_found, after = rest.partition(end)
        if not (found and also_found):
            raise DataError(f"{page} does not hold {begin.strip()} and {end} after it: add both.")
        write_atomically(page, f"{before}{begin}\n{table}\n{shown}{end}{after}")
    except OSError as error:
        raise DataError(f"{page} cannot be read or written: {error.strerror}.") from error
