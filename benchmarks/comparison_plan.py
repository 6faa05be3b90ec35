"""The two sweeps of each method that benchmarks/comparison.py trains: the second takes the best value of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, ValidationError

from megacov.config import load_sweep
from megacov.config.section import Section
from megacov.config.sweep import RewardObjective, SweepSection
from megacov.config.sweep_search import ListSearch, NamedSetting
from megacov.config.yaml_text import dump_yaml, read_yaml
from megacov.errors import ConfigError, DataError
from megacov.files import write_atomically

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "benchmarks" / "comparison.yaml"
OBJECTIVE = RewardObjective(last_steps=None)
"""Mean reward of all steps, which is the area under the curve: the objective of the tuning."""


Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Task(Section):
    """A task, and how long methods train on it."""

    base: Path
    """Run that all methods start from."""
    suite: Path
    """Suite of one set, which has the name of the suite, scored after the last step."""
    reward: float
    """Reward at which entropies are compared."""
    tuning_steps: int = Field(ge=1)
    """Steps of a run that tunes."""
    final_steps: int = Field(ge=1)
    """Steps of a run of the table."""
    pass_at: tuple[int, ...]
    """Values of k for pass@k, which the suite has."""
    only: tuple[str, ...] = ()
    """Methods that are trained on this task; all if empty."""


class Tuned(Section):
    """The main hyperparameter of a method."""

    keys: tuple[str, ...] = Field(min_length=1)
    """Dotted keys, which all take the same value."""
    values: tuple[float, ...] = Field(min_length=1)
    """Values to try, each with one run."""


class Plan(Section):
    """The whole comparison."""

    methods: Path
    """Sweep whose entries are the methods."""
    tuning_seed: Seed
    """Seed of the runs that tune, which is none of `seeds`."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """Seeds of the table."""
    tasks: dict[str, Task]
    """Tasks by name."""
    tuned: dict[str, Tuned]
    """Hyperparameters by method."""


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Args:
        path: a file such as benchmarks/comparison.yaml.

    Returns:
        The plan.

    Raises:
        ConfigError: the file cannot be read or is no plan, a seed tunes and counts, a seed or a value occurs twice, or
            methods have budgets of different sizes.
    """
    try:
        plan = Plan.model_validate(read_yaml(path, source=str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a plan such as {PLAN}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise ConfigError(f"{path}: {place}: {first['msg']}; correct it as in {PLAN}.") from None
    if plan.tuning_seed in plan.seeds:
        raise ConfigError(f"{path}: tuning_seed is {plan.tuning_seed}, which seeds holds: choose another seed.")
    if len(set(plan.seeds)) < len(plan.seeds):
        raise ConfigError(f"{path}: seeds is {list(plan.seeds)}: remove the seed that occurs twice.")
    for name, tuned in plan.tuned.items():
        if len({f"{value:g}" for value in tuned.values}) < len(tuned.values):  # as they are named
            raise ConfigError(f"{path}: {name} has {list(tuned.values)}: give values that differ in six digits.")
    sizes = {name: len(tuned.values) for name, tuned in plan.tuned.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"{path}: methods have budgets of {sizes}: give each the same number of values.")
    return plan


class TaskSweeps:
    """The sweeps of the methods of one task."""

    def __init__(self, plan: Plan, name: str, folder: Path) -> None:
        """Read the methods.

        Args:
            plan: the plan.
            name: a task of the plan.
            folder: folder of the task, with a folder for each method.

        Raises:
            ConfigError: a method of the task is unknown, or has nothing to tune.
        """
        self.task, self.name, self.folder, self._plan = plan.tasks[name], name, folder, plan
        search = load_sweep(ROOT / plan.methods).search
        assert isinstance(search, ListSearch)
        entries = {entry.name: entry for entry in search.entries}
        for method in self.task.only or entries:
            if method not in entries or method not in plan.tuned:
                where = "tuned" if method in entries else plan.methods
                raise ConfigError(f"{method} is a method of {name} and is not in {where}: add it there.")
        self.entries = {each: entries[each] for each in entries if not self.task.only or each in self.task.only}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the table."""
        return self._plan.seeds

    def tuned(self, method: str) -> Tuned:
        """The hyperparameter of a method."""
        return self._plan.tuned[method]

    def tuning(self, method: str) -> SweepSection:
        """The sweep that tries each value of a method once."""
        entry, tuned = self.entries[method], self.tuned(method)
        entries = [_with(entry, f"{method}-{value:g}", dict.fromkeys(tuned.keys, value)) for value in tuned.values]
        return self._sweep(method, "tuning", entries, (self._plan.tuning_seed,), steps=self.task.tuning_steps)

    def final(self, method: str, value: float) -> SweepSection:
        """The sweep that trains a method with each seed; a value has its own folder, as the best may change."""
        entry = _with(self.entries[method], method, dict.fromkeys(self.tuned(method).keys, value))
        return self._sweep(method, f"final-{value:g}", [entry], self.seeds, steps=self.task.final_steps)

    def _sweep(
        self, method: str, stage: str, entries: Sequence[NamedSetting], seeds: tuple[int, ...], *, steps: int
    ) -> SweepSection:
        settings: dict[str, JsonValue] = {
            "run.steps": steps,
            "checkpoint.every": steps,
            "checkpoint.keep_last": 1,
            "evaluation.suite": str(ROOT / self.task.suite),
            "evaluation.every": steps,
        }
        return SweepSection(
            name=f"{method}_{stage}",
            directory=self.folder / method / stage,
            base=ROOT / self.task.base,
            settings=settings,
            seeds=seeds,
            search=ListSearch(entries=tuple(entries)),
            objective=OBJECTIVE,
        )


def _with(entry: NamedSetting, name: str, changes: Mapping[str, Any]) -> NamedSetting:
    return entry.model_copy(update={"name": name, "settings": {**entry.settings, **changes}})


def write_sweep(sweep: SweepSection) -> Path:
    """Write a sweep beside its folder, as a file that `megacov sweep` takes.

    Args:
        sweep: the sweep.

    Returns:
        The file.

    Raises:
        DataError: the disk refuses it.
    """
    path = sweep.directory.with_name(f"{sweep.directory.name}.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump_yaml(sweep.model_dump(mode="json")))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): choose another --folder.") from error
    return path
