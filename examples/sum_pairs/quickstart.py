"""Train the tiny policy with GRPO, Clip-Cov and KL-Cov on two tensor-parallel ranks, and compare them.

    python -m examples.sum_pairs.quickstart [--seeds 0 1 2] [--steps N] [--folder runs/quickstart]

The folder receives a run folder for each algorithm and seed, and compare.png. Earlier runs are moved aside.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALGORITHMS = ("grpo", "clip_cov", "kl_cov")


def _megacov(*arguments: str) -> None:
    command = [sys.executable, "-m", "megacov", *arguments]
    print("$ megacov", *arguments, flush=True)
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode != 0:
        raise SystemExit(result.returncode)


def main() -> None:
    """Train every algorithm with every seed, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=None, help="instead of the number in yaml_configs/runs")
    parser.add_argument("--folder", type=Path, default=Path("runs", "quickstart"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    started = time.monotonic()
    folders = []
    for seed in arguments.seeds:
        for algorithm in ALGORITHMS:
            name = f"{algorithm}_seed{seed}"
            folders.append(str(folder / name))
            overrides = [f"run.name={name}", f"run.directory={folders[-1]}", f"run.seed={seed}", "parallel.tensor=2"]
            if arguments.steps is not None:
                overrides.append(f"run.steps={arguments.steps}")
            _megacov("train", f"yaml_configs/runs/tiny_{algorithm}.yaml", *overrides)
    _megacov("compare", *folders, "--reward", "0.8", "--output", str(folder / "compare.png"))
    tensorboard = Path(sys.executable).with_name("tensorboard")
    print(f"Done in {time.monotonic() - started:.0f} s. To look closer: {tensorboard} --logdir {folder}")


if __name__ == "__main__":
    main()
