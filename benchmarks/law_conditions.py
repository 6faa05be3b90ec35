"""Whether R = -a exp(H) + b survives stale samples, several updates a rollout, and another advantage estimator.

    python -m benchmarks.law_conditions [--seeds 0 1 2] [--steps 60] [--folder runs/law_conditions] [--skip 5]

The tiny policy learns sum_pairs under every combination of GRPO and RLOO (the estimator alone: loss and aggregation are
those of GRPO), samples of this step's or of the last step's weights, and one or eight updates a rollout. A step has 256
responses in all of them. Runs go one at a time, all conditions of a seed before the next seed, and finished ones are
kept: the command can be stopped and given again. `--table` only fits what is finished. 24 runs take about an hour on
two cores.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megacov.config import RunConfig, load_config
from megacov.config.resume import contradictions
from megacov.errors import ConfigError
from megacov.monitor.entropy_law import EntropyLaw, fit
from megacov.monitor.entropy_law.curves import Curve
from megacov.monitor.entropy_law.estimate import Interval
from megacov.monitor.entropy_law.sources import read_source
from megacov.monitor.run_end import read_end

ROOT = Path(__file__).parents[1]
RUN = ROOT / "yaml_configs" / "runs" / "tiny_grpo.yaml"
_LAST = 6  # steps over which the reward that a run ended with is averaged
_COLUMNS = (
    "condition",
    "seed",
    "entropy, first to lowest",
    "a (95 %)",
    "b (95 %)",
    "ceiling b - a (95 %)",
    f"reward of the last {_LAST} steps",
    "RMSE",
    "early prediction: RMSE, error at the end",
    "verdict",
)
_ESTIMATORS = {"grpo": "group_relative", "rloo": "rloo"}


@dataclass(frozen=True, slots=True)
class Condition:
    """What differs between runs.

    algorithm: "grpo" or "rloo".
    staleness: steps by which samples may be older than the weights that are trained.
    updates: optimizer steps of a rollout batch.
    """

    algorithm: str
    staleness: int
    updates: int

    @property
    def name(self) -> str:
        """Part of the run's name."""
        return f"{self.algorithm}_staleness{self.staleness}_updates{self.updates}"

    def overrides(self, folder: Path, *, seed: int, steps: int) -> list[str]:
        """Settings of the run, over those of the YAML file."""
        name = f"{self.name}_seed{seed}"
        return [
            f"run.name={name}",
            f"run.directory={folder / name}",
            f"run.seed={seed}",
            f"run.steps={steps}",
            f"algorithm.advantages.name={_ESTIMATORS[self.algorithm]}",
            f"rollout.max_staleness={self.staleness}",
            "rollout.prompts_per_step=32",
            f"batch.updates_per_rollout={self.updates}",
            f"checkpoint.every={steps}",
            # Stale samples with eight updates differ from the policy by more than the default lets pass.
            *(["weight_sync.max_mismatch=null"] if self.staleness else []),
        ]


CONDITIONS = tuple(
    Condition(algorithm, staleness, updates)
    for staleness, updates, algorithm in itertools.product((0, 1), (1, 8), _ESTIMATORS)
)


def is_finished(config: RunConfig) -> bool:
    """Whether a run has ended well in its folder.

    Args:
        config: of the run that is wanted.

    Returns:
        False also if a run was stopped there, which then begins anew.

    Raises:
        ConfigError: the folder holds a finished run of another configuration.
    """
    folder = config.run.directory
    end = read_end(folder, since=0.0) if folder.is_dir() else None
    if end is None or end.code != 0:
        return False
    saved = load_config(folder / "config.yaml")
    found = list(contradictions(saved.model_dump(mode="json"), config).values())
    if saved.run.steps != config.run.steps:
        found.append(f"run.steps was {saved.run.steps} and is {config.run.steps}")
    if found:
        raise ConfigError(f"{folder} holds another run ({found[0]}): name another --folder, or move it away.")
    return True


def train_all(folder: Path, *, seeds: Sequence[int], steps: int) -> None:
    """Train what is not finished; ends with the exit code of a run that fails."""
    for seed, condition in itertools.product(seeds, CONDITIONS):
        overrides = condition.overrides(folder, seed=seed, steps=steps)
        if is_finished(load_config(RUN, overrides)):
            continue
        print("$ megacov train", RUN.name, *overrides, flush=True)
        ended = subprocess.run([sys.executable, "-m", "megacov", "train", str(RUN), *overrides], cwd=ROOT, check=False)
        if ended.returncode != 0:
            raise SystemExit(ended.returncode)


def finished_runs(folder: Path, *, seeds: Sequence[int], steps: int) -> Iterator[tuple[Condition, int, Path]]:
    """Condition, seed and folder of each finished run."""
    for condition, seed in itertools.product(CONDITIONS, seeds):
        config = load_config(RUN, condition.overrides(folder, seed=seed, steps=steps))
        if is_finished(config):
            yield condition, seed, config.run.directory


def fit_run(folder: Path, *, skip: int = 0) -> tuple[Curve, EntropyLaw]:
    """Points of a run, and their law; `skip` is the number of first steps to leave out."""
    source = read_source(folder)
    curve = source.curve
    entropies, rewards = curve.entropies[skip:], curve.rewards[skip:]
    return curve, fit(entropies, rewards, conditions=source.conditions, best_reward=curve.best_reward)


def table_row(condition: Condition, seed: int, curve: Curve, law: EntropyLaw) -> str:
    """The law of one run, as a row of a Markdown table."""
    kinds = ", ".join(reason.kind for reason in law.verdict.reasons)
    early = "none" if law.early is None else f"{law.early.rmse:.3f}, {law.early.final_error:+.3f}"
    cells = [
        condition.name.replace("_", " "),
        str(seed),
        f"{curve.entropies[0]:.2f} to {curve.entropies.min():.2f}",
        _with_interval(law.a, law.intervals.a),
        _with_interval(law.b, law.intervals.b),
        _with_interval(law.ceiling, law.intervals.ceiling),
        f"{curve.rewards[-_LAST:].mean():.2f}",
        f"{law.rmse:.3f}",
        early,
        law.verdict.outcome + (f": {kinds}" if kinds else ""),
    ]
    return f"| {' | '.join(cells)} |"


def summary_row(condition: Condition, laws: Sequence[EntropyLaw]) -> str:
    """Mean and range of a condition's coefficients over its seeds, as a row of a Markdown table."""
    early = [law.early.rmse for law in laws if law.early is not None]
    columns = [[law.a for law in laws], [law.b for law in laws], [law.ceiling for law in laws]]
    cells = [condition.name.replace("_", " "), str(len(laws)), *map(_over_seeds, columns)]
    return f"| {' | '.join([*cells, _over_seeds([law.rmse for law in laws]), _over_seeds(early)])} |"


def _over_seeds(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "none"


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def main() -> None:
    """Train what is not finished, then fit and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "law_conditions")
    parser.add_argument("--table", action="store_true", help="fit the finished runs without training")
    parser.add_argument("--skip", type=int, default=0, help="first steps that the fits leave out")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if not arguments.table:
        train_all(folder, seeds=arguments.seeds, steps=arguments.steps)
    laws: dict[Condition, list[EntropyLaw]] = {}
    _print_head(_COLUMNS)
    for condition, seed, run in finished_runs(folder, seeds=arguments.seeds, steps=arguments.steps):
        curve, law = fit_run(run, skip=arguments.skip)
        laws.setdefault(condition, []).append(law)
        print(table_row(condition, seed, curve, law))
    print()
    _print_head(("condition", "runs", "a", "b", "ceiling b - a", "RMSE", "early prediction: RMSE"))
    for condition, found in laws.items():
        print(summary_row(condition, found))


def _print_head(columns: Sequence[str]) -> None:
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")


if __name__ == "__main__":
    main()
