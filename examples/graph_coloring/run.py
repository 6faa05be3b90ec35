"""Train the graph-coloring policy with GRPO, Clip-Cov and KL-Cov on two tensor-parallel ranks, and compare them.

    python -m examples.graph_coloring.run [--seeds 0 1 2] [--steps N] [--folder runs/graph_coloring]

The folder receives a run folder for each algorithm and seed, and compare.png. Earlier runs are moved aside.
"""

from __future__ import annotations

from pathlib import Path

from examples.comparison import compare_algorithms


def main() -> None:
    """Train every algorithm with every seed, then compare."""
    compare_algorithms(
        __doc__.splitlines()[0],
        runs="yaml_configs/runs/graph_coloring_{algorithm}.yaml",
        folder=Path("runs", "graph_coloring"),
        reward=0.9,
    )


if __name__ == "__main__":
    main()
