"""Trains one policy with several algorithms and seeds on two tensor-parallel ranks, and compares the runs."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALGORITHMS = ("grpo", "clip_cov", "kl_cov")


def _megacov(*arguments: str) -> None:
    command = [sys.executable, "-m", "megacov", *arguments]
    print("$ megacov", *arguments, flush=True)
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode != 0:
        raise SystemExit(result.returncode)


def compare_algorithms(description: str, *, runs: str, folder: Path, reward: float) -> None:
    """Read the command line, train every algorithm with every seed, then compare.

    Args:
        description: first line of the help.
        runs: path of the run configurations, with {algorithm} in place of its name.
        folder: folder for the runs, unless the command line names another.
        reward: mean reward at which entropies are compared.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=None, help="instead of the number in the run configurations")
    parser.add_argument("--folder", type=Path, default=folder)
    arguments = parser.parse_args()
    folder = arguments.folder
    started = time.monotonic()
    folders = []
    for seed in arguments.seeds:
        for algorithm in ALGORITHMS:
            name = f"{algorithm}_seed{seed}"
            folders.append(str(folder / name))
            overrides = [f"run.name={name}", f"run.directory={folders[-1]}", f"run.seed={seed}", "parallel.tensor=2"]
            if arguments.steps is not None:
                overrides.append(f"run.steps={arguments.steps}")
            _megacov("train", runs.format(algorithm=algorithm), *overrides)
    _megacov("compare", *folders, "--reward", str(reward), "--output", str(folder / "compare.png"))
    tensorboard = Path(sys.executable).with_name("tensorboard")
    print(f"Done in {time.monotonic() - started:.0f} s. To look closer: {tensorboard} --logdir {folder}")
