"""The part of `megacov doctor` for nodes of a cluster: without torch, and with a deadline for every question."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megacov.cli.finding import Finding, State
from megacov.errors import SubmitError
from megacov.launch.partitions import ASK_PARTITIONS, Partition, parse_partitions
from megacov.launch.slurm import ask_slurm, complaint

# All parts are examined in parallel. SLURM gets two questions with this deadline, every other part one with twice as
# much.
_ASK_S = 4.5

INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")
# An SGLang server raises its own limit to this.
_SGLANG_FILES = 65535
# NVIDIA recommends for its containers: --shm-size=1g --ulimit memlock=-1.
_SHARED_BYTES = 1 << 30


def examine_node() -> list[Finding]:
    """Look at all parts of this node."""
    looks: list[Callable[[], Finding]] = [
        find_slurm,
        find_containers,
        find_driver,
        find_infiniband,
        find_locked_memory,
        find_open_files,
        find_shared_memory,
    ]
    with ThreadPoolExecutor(len(looks)) as pool:
        return list(pool.map(lambda look: look(), looks))


def find_slurm(environment: Mapping[str, str] = os.environ) -> Finding:
    """Ask SLURM for its version and its partitions. The environment shows whether this process is part of a job."""
    used_for, without = "megacov launch, megacov status JOBID", "runs on this machine, or ranks that torchrun starts"
    if shutil.which("scontrol") is None:
        return Finding("SLURM", "absent", "there is no scontrol", used_for, without)
    lines = []
    if "SLURM_JOB_ID" in environment:
        lines = [f"inside job {environment['SLURM_JOB_ID']} on {environment.get('SLURM_JOB_NODELIST', 'no nodes')}"]
    try:
        version = ask_slurm("scontrol", "--version", deadline_s=_ASK_S)
        partitions = ask_slurm(*ASK_PARTITIONS, deadline_s=_ASK_S)
    except SubmitError as error:
        return Finding("SLURM", "broken", "\n".join([str(error), *lines]), used_for, without)
    if refused := next((answer for answer in (version, partitions) if answer.returncode), None):
        return Finding("SLURM", "broken", "\n".join([complaint(refused), *lines]), used_for, without)
    try:
        found = [version.stdout.strip(), *map(_describe, parse_partitions(partitions.stdout)), *lines]
    except SubmitError as error:
        return Finding("SLURM", "broken", "\n".join([str(error), *lines]), used_for, without)
    return Finding("SLURM", "found", "\n".join(found), used_for, without)


def _describe(partition: Partition) -> str:
    remarks = [*(["default"] * partition.is_default), *(["down"] * (not partition.is_up))]
    return f"partition {partition.name}: {partition.nodes} nodes{''.join(f', {remark}' for remark in remarks)}"


def find_containers() -> Finding:
    """Look for the tools that start containers in jobs."""
    used_for, without = "MEGACOV_CONTAINER of a site", "jobs run in the environment that submits them"
    found = []
    if shutil.which("srun") is not None:
        options = _ask("srun", "--help")
        if isinstance(options, str) and "--container-image" in options:
            found.append("pyxis, since srun takes --container-image")
    if (apptainer := shutil.which("apptainer")) is not None:
        found.append(apptainer)
    state: State = "found" if found else "absent"
    return Finding("containers", state, "\n".join(found) or "neither pyxis nor apptainer", used_for, without)


def find_driver() -> Finding:
    """Ask the NVIDIA driver for its version and its GPUs."""
    used_for, without = "GPUs, of the trainer and of the servers", "training on CPU cores over gloo"
    if shutil.which("nvidia-smi") is None:
        return Finding("NVIDIA driver", "absent", "there is no nvidia-smi", used_for, without)
    answer = _ask("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader")
    if isinstance(answer, OSError):
        return Finding("NVIDIA driver", "broken", str(answer), used_for, without)
    gpus = [line.partition(",")[::2] for line in answer.splitlines() if line]
    names = [name.strip() for _, name in gpus]
    kinds = [f"{names.count(name)} x {name}" for name in sorted(set(names))]
    return Finding("NVIDIA driver", "found", "\n".join([gpus[0][0], *kinds]), used_for, without)


def _ask(*words: str) -> str | OSError:
    """The output of a command, or the reason why it has none."""
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        output, errors = process.communicate(timeout=2 * _ASK_S)
    except subprocess.TimeoutExpired:
        # A process that hangs in a driver does not even end when it is killed, so it is not waited for.
        process.kill()
        return OSError(f"{words[0]} has not answered within {2 * _ASK_S:g} s")
    except OSError as error:
        return error
    if process.returncode or not output.strip():
        first = (output.strip() or errors.strip() or "nothing").splitlines()[0]
        return OSError(f"{words[0]} says {first!r}")
    return output


def find_infiniband(folder: Path = INFINIBAND) -> Finding:
    """Look in the kernel's folder for InfiniBand devices, under which RoCE and other devices appear as well."""
    used_for, without = "NCCL between nodes", "NCCL over TCP, which is many times slower"
    lines, is_active = [], False
    for port in sorted(folder.glob("*/ports/*")):
        state, rate, layer = (_read(port / name) for name in ("state", "rate", "link_layer"))
        is_active |= "ACTIVE" in state
        lines.append(f"{port.parents[1].name} port {port.name}: {state.rpartition(' ')[2]}, {rate}, {layer}")
    if not lines:
        return Finding("InfiniBand", "absent", f"no devices in {folder}", used_for, without)
    return Finding("InfiniBand", "found" if is_active else "broken", "\n".join(lines), used_for, without)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return "unknown"


def find_locked_memory(folder: Path = INFINIBAND) -> Finding:
    """Look at the limit of locked memory. A limit is harmless only if `folder` shows no InfiniBand devices."""
    used_for = "memory that InfiniBand devices write to (NCCL)"
    without = "with InfiniBand, NCCL fails at its start; raise it with `ulimit -l unlimited`, or a container's memlock"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Finding("locked memory", "found", "unlimited", used_for, without)
    state: State = "broken" if any(folder.glob("*/ports/*")) else "found"
    return Finding("locked memory", state, f"{limit >> 10} KiB, not unlimited", used_for, without)


def find_open_files() -> Finding:
    """Look at the limit of open files, which must allow an SGLang server to raise its own."""
    used_for = "connections between trainer and servers, files of checkpoints"
    without = f"SGLang cannot raise it to {_SGLANG_FILES}, and connections fail under load"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    state: State = "found" if hard == resource.RLIM_INFINITY or hard >= _SGLANG_FILES else "broken"
    return Finding("open files", state, f"{soft}, can be raised to {most}", used_for, without)


def find_shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Look at the free space of the file system for shared memory, which is mounted at `folder`."""
    used_for = "NCCL between the GPUs of a node, SGLang's processes"
    without = "NCCL fails at its start; give a container --shm-size, or the host's /dev/shm"
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return Finding("shared memory", "broken", f"{folder}: {error.strerror}", used_for, without)
    size, free = (blocks * room.f_frsize for blocks in (room.f_blocks, room.f_bavail))
    state: State = "found" if free >= _SHARED_BYTES else "broken"
    found = f"{size / 2**30:.1f} GiB in {folder}, {free / 2**30:.1f} GiB free"
    return Finding("shared memory", state, found, used_for, without)
