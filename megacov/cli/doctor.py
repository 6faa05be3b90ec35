"""`megacov doctor`: the parts of this machine, what megacov uses each for, and how it does without."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megacov.cli.doctor_cluster import examine_node
from megacov.cli.finding import Finding, State

_STYLES: dict[State, str] = {"found": "green", "absent": "dim", "broken": "yellow", "wrong": "bold red"}
_PYTHONS = SpecifierSet(">=3.11,<3.13")
_SHOWN_ALONE = ("torch", "megatron-core")


def doctor() -> None:
    """Show what this machine has and what is installed, what for, and what happens without it.

    Exits with 1 if megacov cannot run here.
    """
    findings = examine()
    table = Table("part", "found", "used for", "without it", show_lines=True)
    table.columns[0].no_wrap = True
    for finding in findings:
        found = Text(finding.found, style=_STYLES[finding.state])
        table.add_row(Text(finding.part), found, Text(finding.used_for), Text(finding.without))
    Console().print(table)
    if any(finding.part == "transformer-engine" and finding.state != "found" for finding in findings):
        how = how_to_build_transformer_engine(_cuda_of_torch(), versions=_engines_of_megatron())
        print(f"transformer-engine: {how}")
    wrong = [finding.part for finding in findings if finding.state == "wrong"]
    if wrong:
        print(f"megacov cannot run here: fix {', '.join(wrong)}.")
        raise typer.Exit(1)
    print("megacov can run here.")


def examine() -> list[Finding]:
    """Look at this machine. Parts that are always needed come first."""
    requirements = _requirements()
    return [
        _find_python(),
        _find_required("torch", requirements, used_for="tensors, autograd, gloo and NCCL"),
        _find_required("megatron-core", requirements, used_for="the policy: model, schedules, optimizer, checkpoints"),
        _find_others(requirements),
        _find_cuda(),
        _find_transformer_engine(),
        _find_apex(),
        _find_sglang(),
        _find_cores(),
        *examine_node(),
    ]


def _requirements() -> dict[str, Requirement]:
    try:
        lines = requires("megacov") or []
    except PackageNotFoundError:
        return {}
    needed = (Requirement(line) for line in lines)
    return {need.name: need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})}


def _find_python() -> Finding:
    running = platform.python_version()
    state: State = "found" if running in _PYTHONS else "wrong"
    found = running if state == "found" else f"{running}, but it must be {_PYTHONS}"
    return Finding("python", state, found, "everything", "megacov cannot run")


def _find_required(name: str, requirements: dict[str, Requirement], *, used_for: str) -> Finding:
    problem = _problem(name, requirements)
    found = problem or version(name)
    return Finding(name, "wrong" if problem else "found", found, used_for, "megacov cannot run")


def _find_others(requirements: dict[str, Requirement]) -> Finding:
    others = [name for name in requirements if name not in _SHOWN_ALONE]
    problems = [f"{name}: {problem}" for name in others if (problem := _problem(name, requirements))]
    if not requirements:
        problems = ["megacov is not installed: pip install --editable ."]
    found = "\n".join(problems) or f"all {len(others)}"
    return Finding(
        "other packages", "wrong" if problems else "found", found, "see pyproject.toml", "megacov cannot run"
    )


def _problem(name: str, requirements: dict[str, Requirement]) -> str | None:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return "not installed"
    allowed = requirements[name].specifier if name in requirements else SpecifierSet()
    return None if allowed.contains(installed, prereleases=True) else f"{installed}, but it must be {allowed}"


def _find_cuda() -> Finding:
    used_for, without = "training with NCCL", "training on CPU cores over gloo"
    if find_spec("torch") is None:
        return Finding("CUDA devices", "absent", "unknown without torch", used_for, without)
    import torch

    if not torch.cuda.is_available():
        return Finding("CUDA devices", "absent", "none", used_for, without)
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    lines = (f"{index}: {device.name}, {device.total_memory / 2**30:.0f} GiB" for index, device in enumerate(devices))
    return Finding("CUDA devices", "found", "\n".join(lines), used_for, without)


def _find_transformer_engine() -> Finding:
    used_for, without = "fused attention, norms and linear layers, FP8", "Megatron's local layers and torch's attention"
    state, found = _try_import("transformer_engine.pytorch", package="transformer-engine")
    return Finding("transformer-engine", state, found, used_for, without)


def _cuda_of_torch() -> str | None:
    """CUDA release that torch was built for, as in "13.0"; None without torch, or for one without CUDA."""
    if find_spec("torch") is None:
        return None
    import torch

    cuda: str | None = torch.version.cuda
    return cuda


def _engines_of_megatron() -> str:
    """Releases of Transformer Engine that the installed Megatron-Core names in an extra; empty if it names none."""
    with suppress(PackageNotFoundError):
        for need in map(Requirement, requires("megatron-core") or []):
            if need.name == "transformer-engine":
                return str(need.specifier)
    return ""


def how_to_build_transformer_engine(cuda: str | None, *, versions: str) -> str:
    """The command that builds Transformer Engine against the torch that is installed.

    On PyPI its part for torch is source only. In an isolated build, pip compiles that against another torch, the newest
    one, and takes the CUDA core library that belongs to it; without isolation and with a torch without CUDA, it fails.

    Args:
        cuda: CUDA release of that torch, as in "13.0"; None for a torch without CUDA.
        versions: allowed releases of Transformer Engine, as in "<2.12".

    Returns:
        A line for a shell, and what it does.
    """
    if cuda is None:
        return "to build it, first install a torch with CUDA, of the release in constraints.txt"
    core = f"core_cu{cuda.partition('.')[0]}"
    return (
        "to build it against the torch that is installed: pip install packaging pybind11 setuptools wheel && "
        f'NVTE_FRAMEWORK=pytorch pip install --no-build-isolation "transformer-engine[{core},pytorch]{versions}"'
    )


def _find_apex() -> Finding:
    used_for, without = "NVIDIA's FusedAdam", "Transformer Engine's Adam, or torch's"
    spec = find_spec("apex")
    folders = [] if spec is None else spec.submodule_search_locations or []
    if spec is not None and not any(Path(folder, "optimizers").is_dir() for folder in folders):
        found = "another package called apex, such as the one on PyPI; build NVIDIA's from its repository"
        return Finding("apex", "broken", found, used_for, without)
    state, found = _try_import("apex.optimizers", package="apex", attribute="FusedAdam")
    return Finding("apex", state, found, used_for, without)


def _find_sglang() -> Finding:
    used_for = "rollouts on GPUs, by separate servers reached over HTTP, which may have an environment of their own"
    without = "rollouts from servers elsewhere, or from the embedded server"
    # Importing SGLang would start CUDA, so only its version is looked up.
    try:
        return Finding("sglang", "found", version("sglang"), used_for, without)
    except PackageNotFoundError:
        return Finding("sglang", "absent", "not installed", used_for, without)


def _find_cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = f"{cores} cores, {memory:.0f} GiB"
    return Finding("CPU", "found", found, "ranks over gloo, the embedded server, verifiers", "-")


def _try_import(module: str, *, package: str, attribute: str | None = None) -> tuple[State, str]:
    if find_spec(module.partition(".")[0]) is None:
        return "absent", "not installed"
    try:
        loaded = import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        # Usually the package was compiled for another torch or CUDA.
        reason = str(error).splitlines() or [type(error).__name__]
        return "broken", f"cannot be imported: {reason[0]}"
    if attribute is not None and not hasattr(loaded, attribute):
        return "broken", f"installed without {attribute}"
    try:
        return "found", version(package)
    except PackageNotFoundError:
        return "found", "version unknown"
