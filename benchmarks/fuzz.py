"""Gives every reader of outside text valid files with a few mistakes, and measures which of its branches they reach.

    .venv/bin/python -m benchmarks.fuzz --cases 20000

A case must end in a value or in one sentence, within five CPU seconds and two gigabytes. The table has, for each
reader, the cases and how many of them were refused, the slowest case, and the share of branches reached. The exit code
is 1 if a share is below 90 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import coverage

ROOT = Path(__file__).parents[1]
LEAST_SHARE = 0.9
Functions = dict[str, dict[str, Any]]


def main() -> int:
    """Run the cases of all readers and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=20_000, help="cases of all readers together")
    options.add_argument("--only", default="", help="readers whose names contain this")
    arguments = options.parse_args()

    measured = coverage.Coverage(branch=True, data_file=None, include=[str(ROOT / "megacov" / "*")])
    with measured.collect():
        # Imported while branches are counted, since modules run theirs on import.
        from tests.support.fuzz.parsers import PARSERS
        from tests.support.fuzz.running import cases_of, fuzz

        outcomes = []
        for parser in PARSERS:
            if arguments.only in parser.name:
                with tempfile.TemporaryDirectory() as folder:
                    outcomes.append((parser, fuzz(parser, Path(folder), cases=cases_of(parser, arguments.cases))))
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        measured.json_report(outfile=file.name)
        files = _read(Path(file.name))

    print(f"{'reader':<28}{'cases':>8}{'refused':>9}{'slowest':>11}{'branches':>15}")
    is_low = False
    for parser, outcome in outcomes:
        reached, all_branches = _branches(files, parser.covers)
        share = reached / all_branches if all_branches else 1.0
        is_low |= share < LEAST_SHARE
        print(
            f"{parser.name:<28}{outcome.cases:>8}{outcome.refused / outcome.cases:>8.0%} "
            f"{1e3 * outcome.slowest_s:>8.1f} ms{f'{reached}/{all_branches}':>9}{share:>6.0%}"
        )
    slowest = max((outcome for _, outcome in outcomes), key=lambda outcome: outcome.slowest_s)
    print(f"\nslowest case: {slowest.parser}, {1e3 * slowest.slowest_s:.0f} ms: {slowest.slowest[:300]!r}")
    if is_low:
        print(
            "\nbranches that no case has reached:",
            *_missed(files, [parser.covers for parser, _ in outcomes]),
            sep="\n  ",
        )
    return int(is_low)


def _read(path: Path) -> dict[str, Functions]:
    """What coverage reports on each function, by file below megacov/ and name."""
    report = json.loads(path.read_text())["files"]
    return {str(Path(file).resolve().relative_to(ROOT / "megacov")): each["functions"] for file, each in report.items()}


def _counted(
    files: dict[str, Functions], covers: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Functions that count: those that a reader names, methods of a class that it names, or all of a file."""
    for file, names in covers.items():
        for function, report in files[file].items():
            is_named = not names or function in names or function.partition(".")[0] in names
            if is_named and function:
                yield file, function, report


def _branches(files: dict[str, Functions], covers: Mapping[str, tuple[str, ...]]) -> tuple[int, int]:
    summaries = [report["summary"] for _, _, report in _counted(files, covers)]
    return sum(each["covered_branches"] for each in summaries), sum(each["num_branches"] for each in summaries)


def _missed(files: dict[str, Functions], every: list[Mapping[str, tuple[str, ...]]]) -> Iterator[str]:
    for covers in every:
        for file, function, report in _counted(files, covers):
            if report["missing_branches"]:
                yield f"megacov/{file}, {function}: {report['missing_branches']}"


if __name__ == "__main__":
    sys.exit(main())
