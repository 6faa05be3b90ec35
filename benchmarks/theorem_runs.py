"""How well each prediction of the change of entropy agrees with the observed change, in runs that measured both.

Run: python -m benchmarks.theorem_runs RUN... [--first 30]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megacov.monitor.event_reader import read_history
from megacov.monitor.history import Series
from megacov.monitor.theorem_agreement import OBSERVED_TAG, PREDICTIONS, find_agreement


def between(series: Series, first: int, last: int) -> Series:
    """The points of the steps first to last."""
    is_inside = (series.steps >= first) & (series.steps <= last)
    return Series(series.steps[is_inside], series.values[is_inside])


def main() -> None:
    """Print a table a run: correlation, slope and share of equal signs, over all steps and over two parts of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--first", type=int, default=30, help="last step of the first part")
    options = parser.parse_args()
    for run in options.runs:
        scalars = read_history(run / "tensorboard").scalars
        last = int(scalars[OBSERVED_TAG].steps[-1])
        print(f"{run.name}: correlation, slope, equal signs")
        for first, end in ((1, last), (1, options.first), (options.first + 1, last)):
            for name in PREDICTIONS:
                if f"theorem/{name}" not in scalars:
                    continue
                found = find_agreement(
                    between(scalars[f"theorem/{name}"], first, end),
                    between(scalars[OBSERVED_TAG], first, end),
                    window=None,
                )
                numbers = (
                    "-" if found is None else f"{found.correlation:6.2f} {found.slope:8.3f} {found.same_sign:6.0%}"
                )
                print(f"  steps {first:3d} to {end:3d}  {name:12s}{numbers}")


if __name__ == "__main__":
    main()
