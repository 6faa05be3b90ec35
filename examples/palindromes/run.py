"""Train the palindrome policy with GRPO, Clip-Cov and KL-Cov on two tensor-parallel ranks, and compare them.

    python -m examples.palindromes.run [--seeds 0 1 2] [--steps N] [--folder runs/palindromes]

The folder receives a run folder for each algorithm and seed, and compare.png. Earlier runs are moved aside.
"""

from __future__ import annotations

from pathlib import Path

from examples.comparison import compare_algorithms


def main() -> None:
    """Train every algorithm with every seed, then compare."""
    compare_algorithms(
        __doc__.splitlines()[0],
        runs="yaml_configs/runs/palindromes_{algorithm}.yaml",
        folder=Path("runs", "palindromes"),
        reward=0.85,
    )


if __name__ == "__main__":
    main()
