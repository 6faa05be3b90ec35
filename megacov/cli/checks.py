"""The checks before a run, one list of small functions: `check` shows what they find, `launch` and `train` act on it.

All of them are static: they import neither torch nor anything that a setting names. `megacov.cli.deep` does that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from megacov.checkpoint.occupant import look_at_run_folder
from megacov.cli.check_plan import RunPlan, memory_problems, plan_run, problems
from megacov.cli.check_remarks import remarks
from megacov.cli.server_layout import sets_too_long, signal_lead_problem
from megacov.config import RunConfig, config_warnings
from megacov.config.loss_section import ImportedLoss
from megacov.config.messages import show
from megacov.data.files import find_files, local_path
from megacov.errors import ConfigError, DataError, MegacovError
from megacov.functions import split_function_name
from megacov.plan import read_model_sizes
from megacov.rewards.loading import load_verifier
from megacov.rewards.registry import MissingPackageError
from megacov.rewards.settings import verifiers_of
from megacov.trainer.prompts import paths_of

Verb = Literal["check", "launch", "train", "resume"]
Severity = Literal["impossible", "warning", "not looked at"]

# The model of a folder may be trained for other lengths than that of model.config_file: the folder's own are used.
_MAY_DIFFER = ("max_position_embeddings", "sliding_window")


@dataclass(frozen=True)
class Remark:
    """A finding of a check. `kind` is the error that refuses the run if it is impossible."""

    severity: Severity
    sentence: str
    kind: type[MegacovError] = ConfigError


@dataclass(frozen=True)
class Subject:
    """The run that the checks look at, and the command that asks.

    verb: the command that checks.
    is_elsewhere: whether a job's files and Python are not those of this machine: they are in a container, or nothing is
        submitted.
    is_deep: whether a process of its own will also import what settings name and open the data.
    """

    config: RunConfig
    verb: Verb
    is_elsewhere: bool = False
    is_deep: bool = False

    @property
    def is_here(self) -> bool:
        """Whether a file that is missing on this machine will be missing in the run."""
        return self.verb in ("train", "resume") or (self.verb == "launch" and not self.is_elsewhere)

    @cached_property
    def plan(self) -> RunPlan | MegacovError:
        """The plan of the run, or why there is none."""
        try:
            return plan_run(self.config)
        except MegacovError as error:
            return error
        except OSError as error:
            return _unreadable(error)


Check = Callable[[Subject], Iterator[Remark]]


def model_folder_is_there(subject: Subject) -> Iterator[Remark]:
    """A folder that is missing here may be on the nodes, if `model.config_file` has the sizes of its model."""
    folder, named = subject.config.model.path, subject.config.model.config_file
    if (folder / "config.json").is_file():
        return
    if subject.verb in ("train", "resume") or (folder.is_dir() and not subject.is_elsewhere):
        sentence = f"model.path is {folder}, which is not a model folder: it has no config.json."
        yield Remark("impossible", sentence, DataError)
    elif named is not None:
        yield Remark(
            "not looked at",
            f"model.path {folder} is not on this machine, and the run is planned with the sizes in model.config_file "
            f"{named}{_on_nodes(subject)}.",
        )


def model_files_agree(subject: Subject) -> Iterator[Remark]:
    """`model.config_file` describes the model of `model.path`."""
    own, named = subject.config.model.path / "config.json", subject.config.model.config_file
    if named is None or not (own.is_file() and named.is_file()):
        return
    try:
        sizes, other = read_model_sizes(own), read_model_sizes(named)
    except MegacovError as error:
        yield Remark("impossible", str(error), type(error))
        return
    for name in (field.name for field in fields(sizes) if field.name not in _MAY_DIFFER):
        if getattr(sizes, name) != getattr(other, name):
            yield Remark(
                "impossible",
                f"model.config_file {named} is of another model than {own}: {name} is {getattr(other, name)} there and "
                f"{getattr(sizes, name)} in the folder; set model.config_file=null, or correct model.path.",
            )
            return


def prompts_are_there(subject: Subject) -> Iterator[Remark]:
    """The files of prompts exist and are not empty. Addresses of other file systems are not opened here."""
    for setting, given in paths_of(subject.config):
        path = local_path(given)
        if path is not None:
            yield from _is_there(subject, setting, path)
        elif not subject.is_deep:
            yield Remark("not looked at", f"{setting} {given} is not on this machine's disks.")


def _is_there(subject: Subject, setting: str, path: Path) -> Iterator[Remark]:
    is_missing = not path.exists()
    if is_missing and not subject.is_here:
        yield Remark("not looked at", f"{setting} {path} is not on this machine.")
        return
    try:
        files = [Path(file.name) for file in find_files(path)]
    except DataError as error:
        problem = ", and there is no such file: correct data.path." if is_missing else f": {error}"
        yield Remark("impossible", f"{setting} is {path}{problem}", DataError)
        return
    for file in files:
        if not (file.is_file() and os.access(file, os.R_OK)):
            yield Remark("impossible", f"{setting} is {file}, which cannot be read: correct it.", DataError)
        elif file.stat().st_size == 0:
            yield Remark("impossible", f"{setting} is {file}, which is empty.", DataError)
    if subject.verb == "check" and not subject.is_deep:
        yield Remark(
            "not looked at",
            f"{setting} {path}, the tokenizer and its chat template are opened by `megacov check --deep` only.",
        )


def verifiers_have_names(subject: Subject) -> Iterator[Remark]:
    """Each verifier is one of megacov's own, whose arguments fit it, or a function that could be imported."""
    for settings in verifiers_of(subject.config).settings:
        if ":" in settings.name:
            yield from _imported(subject, settings.name, setting=settings.setting)
            continue
        try:
            load_verifier(settings)
        except MissingPackageError as error:
            yield Remark("impossible" if subject.is_here else "not looked at", str(error))


def evaluation_is_ready(subject: Subject) -> Iterator[Remark]:
    """The suite of evaluations during training can be read; so can its files, and its verifiers have names."""
    config = subject.config
    if config.evaluation.suite is None:
        return
    from megacov.evaluation.run_suite import find_problems, refuse_code  # other runs need not wait for the import
    from megacov.evaluation.suite import find_suite, load_suite
    from megacov.evaluation.verdicts import verifier_of

    path = find_suite(config.evaluation.suite)
    if not (subject.is_here or path.is_file()):
        yield Remark("not looked at", f"evaluation.suite {path} is not on this machine.")
        return
    suite = load_suite(path)
    refuse_code(suite, allow_code=config.rewards.allow_code)
    if isinstance(subject.plan, RunPlan):
        yield from (Remark("warning", each) for each in sets_too_long(config, suite, subject.plan.sizes))
    missing: Severity = "impossible" if subject.is_here else "not looked at"
    try:
        find_problems(suite, config.evaluation.data)
        for settings in map(verifier_of, suite.sets):
            if ":" in settings.name:
                yield from _imported(subject, settings.name, setting=settings.setting)
            else:
                load_verifier(settings)
    except MissingPackageError as error:
        yield Remark(missing, str(error))
    except DataError as error:
        yield Remark(missing, str(error), DataError)


def loss_has_a_name(subject: Subject) -> Iterator[Remark]:
    """The same for a loss; the configuration knows megacov's own."""
    if isinstance(subject.config.algorithm.loss, ImportedLoss):
        yield from _imported(subject, subject.config.algorithm.loss.name, setting="algorithm.loss.name")


def _imported(subject: Subject, name: str, *, setting: str) -> Iterator[Remark]:
    module, _ = split_function_name(name, setting=setting)
    if subject.verb == "check" and not subject.is_deep:
        top = module.partition(".")[0]
        # Finding the topmost module runs none of its code. The run looks for it in the working folder too.
        is_found = top in sys.builtin_module_names or PathFinder.find_spec(top, [*sys.path, os.getcwd()]) is not None
        missing = "" if is_found else f"; there is no module {top} on this machine"
        yield Remark("not looked at", f"{setting} {name} is imported by `megacov check --deep` only{missing}.")


def job_can_save_in_time(subject: Subject) -> Iterator[Remark]:
    """SLURM's signal leaves time to save. A run that is started without `megacov launch` gets no such signal."""
    problem = signal_lead_problem(subject.config)
    if problem is not None:
        yield Remark("impossible" if subject.verb in ("check", "launch") else "warning", problem)


def run_fits(subject: Subject) -> Iterator[Remark]:
    """Model, layout, memory and servers fit together and onto the machines."""
    plan = subject.plan
    if isinstance(plan, MegacovError):
        if (subject.config.model.path / "config.json").is_file() or subject.verb in ("check", "launch"):
            yield Remark("impossible", str(plan), type(plan))
        return
    # Memory is an estimate: it stops no run that has been running, and none that uses no GPU.
    is_lenient = subject.verb == "resume" or (subject.verb == "train" and subject.config.parallel.backend == "gloo")
    estimates = set(memory_problems(plan)) if is_lenient else ()
    for problem in problems(plan):
        yield Remark("warning" if problem in estimates else "impossible", problem)


def run_is_what_is_meant(subject: Subject) -> Iterator[Remark]:
    """Warnings: the run can be made, and may still not be what the user wants."""
    plan = subject.plan
    found = config_warnings(subject.config) if isinstance(plan, MegacovError) else remarks(plan)
    for sentence in found:
        yield Remark("warning", sentence)


def run_folder_is_free(subject: Subject) -> Iterator[Remark]:
    """The run's folder holds nothing, or a run."""
    if subject.verb != "resume":
        look_at_run_folder(subject.config.run.directory)
    yield from ()


CHECKS: tuple[Check, ...] = (
    model_folder_is_there,
    prompts_are_there,
    model_files_agree,
    run_fits,
    verifiers_have_names,
    evaluation_is_ready,
    loss_has_a_name,
    job_can_save_in_time,
    run_folder_is_free,
    run_is_what_is_meant,
)


def find_remarks(subject: Subject) -> list[Remark]:
    """Apply all checks. A check that raises a MegacovError has found its sentence impossible."""
    found: list[Remark] = []
    for check in CHECKS:
        try:
            found += check(subject)
        except MegacovError as error:
            found.append(Remark("impossible", str(error), type(error)))
        except OSError as error:
            found.append(Remark("impossible", str(_unreadable(error)), DataError))
    return list(dict.fromkeys(found))


def refuse_impossible(found: Iterable[Remark]) -> None:
    """Raise all sentences that make the run impossible, if there are any, as the error of the first."""
    refused = _refused(found)
    if refused:
        raise refused[0].kind(" ".join(remark.sentence for remark in refused))


def show_remarks(found: Iterable[Remark]) -> None:
    """Print warnings, and what has not been looked at, on stderr."""
    for remark in found:
        if remark.severity != "impossible":
            print(f"megacov: {remark.severity}: {remark.sentence}", file=sys.stderr)


def _unreadable(error: OSError) -> DataError:
    """The sentence for a folder of somebody else, or a name that no file can have."""
    return DataError(f"{show(error.filename)} cannot be read: {error.strerror}.")


def _refused(found: Iterable[Remark]) -> list[Remark]:
    return [remark for remark in found if remark.severity == "impossible"]


def _on_nodes(subject: Subject) -> str:
    looks = subject.verb == "launch" and subject.config.slurm.preflight
    return "; the job looks for it on its nodes before it starts anything" if looks else ""
