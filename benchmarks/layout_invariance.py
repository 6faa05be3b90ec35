"""The same rollout batch under every parallel layout: the same tokens selected, the same update.

    python -m benchmarks.layout_invariance [--covering] [--algorithms "kl_cov correction" "clip_cov correction"]

Trains a four-layer policy on gloo ranks of this machine with KL-Cov, Clip-Cov, high-entropy tokens, and every other
registered loss, with each method of selection and three controllers, in every layout of up to four ranks: {TP 1, 2, 4}
x {SP} x {PP 1, 2} x {VPP 1, 2} x {CP 1, 2} x {DP 1, 2, 4} x {micro-batches of one sequence, 64 tokens, all} x {packed,
padded}. Prints a line a layout; exits with 1 if one differs from one rank that holds everything in one micro-batch and
makes a pass to select. Recomputation comes with micro-batches of one sequence, tied embeddings with packed ones of all.
With --covering, it takes 57 of the 138 layouts, which still share any three of these sizes, switches and numbers of
ranks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path

from tests.support.layout_algorithms import ALGORITHMS
from tests.support.layout_cases import ALL, ONE_SEQUENCE, SOME, Layout, run_layouts
from tests.support.layout_difference import Difference, largest

# Relative, in float32; of losses, gradient norms, a loss's metrics, covariance statistics and updated weights.
TOLERANCE = 1e-5


def all_layouts() -> Iterator[Layout]:
    """The grid.

    Yields:
        Every layout of up to four ranks.
    """
    for tensor, pipeline, context, data in product((1, 2, 4), (1, 2), (1, 2), (1, 2, 4)):
        if tensor * pipeline * context * data > 4:
            continue
        switches = list(product((False, True) if tensor > 1 else (False,), (1, 2) if pipeline > 1 else (1,)))
        for (sequence, virtual), tokens, packed in product(switches, (ONE_SEQUENCE, SOME, ALL), (True, False)):
            yield Layout(
                tensor=tensor,
                sequence=sequence,
                pipeline=pipeline,
                virtual=virtual,
                context=context,
                data=data,
                tokens=tokens,
                packed=packed,
                recompute="full" if tokens == ONE_SEQUENCE else "none",
                tied=packed and tokens == ALL,
            )


def _triples(layout: Layout) -> set[tuple[tuple[str, object], ...]]:
    """Every three of a layout's sizes, switches and number of ranks; a size of 1 and a switch that is off count too."""
    names = ("tensor", "sequence", "pipeline", "virtual", "context", "data", "tokens", "packed", "num_ranks")
    return set(combinations([(name, getattr(layout, name)) for name in names], 3))


def covering_layouts(layouts: Sequence[Layout]) -> list[Layout]:
    """Layouts that share any three sizes and switches which some layout of the grid shares: TP 4, DP 1, padded.

    Args:
        layouts: the grid.

    Returns:
        Some of them, in the grid's order.
    """
    missing = set().union(*(_triples(layout) for layout in layouts))
    chosen = []
    while missing:
        best = max(layouts, key=lambda layout: len(_triples(layout) & missing))
        chosen.append(best)
        missing -= _triples(best)
    return [layout for layout in layouts if layout in chosen]


def _line(layout: Layout, differences: dict[str, Difference]) -> str:
    values = differences.values()
    worst = max(values, key=lambda difference: difference.worst)
    name = max(worst.relative, key=worst.relative.__getitem__)
    near_tied = [algorithm for algorithm, difference in differences.items() if difference.is_near_tied]
    remark = "near-tied: " + ", ".join(near_tied) if near_tied else ""
    return (
        f"{layout!s:45s} {sum(difference.selected for difference in values):9d} "
        f"{sum(difference.mismatches for difference in values):11d} {worst.worst:10.1e} {name:11s} "
        f"{max(difference.log_prob_noise for difference in values):9.1e} "
        f"{min(difference.margin for difference in values):8.1e}  {remark}"
    )


def main() -> None:
    """Run the grid, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--covering", action="store_true", help="fewer layouts, which share any three features")
    arguments = parser.parse_args()
    names, layouts = arguments.algorithms, list(all_layouts())
    layouts = covering_layouts(layouts) if arguments.covering else layouts
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = run_layouts(layouts, Path(folder), lambda layout: names)
    print(f"{'layout':45s} {'selected':>9s} {'mismatches':>11s} {'worst':>10s} {'of':11s} {'noise':>9s} {'margin':>8s}")
    for layout, differences in results.items():
        print(_line(layout, differences))
    everything = [difference for differences in results.values() for difference in differences.values()]
    mismatches = sum(difference.mismatches for difference in everything)
    worst = largest(difference.worst for difference in everything)
    print(
        f"{len(layouts)} layouts, {mismatches} mismatches, worst relative difference {worst:.1e} "
        f"(tolerance {TOLERANCE:g}), {time.monotonic() - started:.0f} s"
    )
    sys.exit(mismatches > 0 or not worst <= TOLERANCE)


if __name__ == "__main__":
    main()
