"""Which rank this process is, by the environment variables that launchers set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from megacov.errors import ConfigError

STORE_VARIABLE = "MEGACOV_STORE"

# SLURM numbers the shells of salloc and sbatch with reserved step ids above this one; they are not tasks of srun.
_SLURM_LAST_STEP_ID = 0xFFFFFFF0
_LARGEST_PORT = 65535


class RankEnvironment(NamedTuple):
    """The place of this process among the ranks; `init_method` is what torch.distributed takes to meet them."""

    rank: int
    local_rank: int
    world_size: int
    init_method: str


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """Find out which rank this process is, if it was started as one.

    Understands the ranks of `run_local_ranks`, of torchrun, and of srun with more than one task.

    Args:
        environment: environment variables of this process.

    Returns:
        The rank; None if this process is no rank, in which case it may start local ranks of its own.

    Raises:
        ConfigError: a launcher's variables are incomplete or not numbers.
    """
    if STORE_VARIABLE in environment:
        init_method = f"file://{environment[STORE_VARIABLE]}"
        return _rank(environment, "RANK", "LOCAL_RANK", "WORLD_SIZE", init_method)
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        _check_meeting(
            environment,
            ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
            found=f"RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']} are set",
            remedy="let torchrun set them, or unset RANK and WORLD_SIZE for megacov to start its own ranks",
        )
        return _rank(environment, "RANK", "LOCAL_RANK", "WORLD_SIZE", "env://")
    if _is_srun_task(environment):
        _check_meeting(
            environment,
            ("MASTER_ADDR", "MASTER_PORT"),
            found=f"srun started {environment['SLURM_NTASKS']} ranks",
            remedy="export both in the batch script before srun",
        )
        return _rank(environment, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "env://")
    return None


def _check_meeting(environment: Mapping[str, str], names: Sequence[str], *, found: str, remedy: str) -> None:
    """Refuse an environment that does not say where ranks meet."""
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ConfigError(f"{found} without {' and '.join(missing)}; {remedy}.")
    port = environment["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) <= _LARGEST_PORT:
        raise ConfigError(f"{found} with MASTER_PORT={port!r}, which is not a port from 1 to {_LARGEST_PORT}.")


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    step_id = environment.get("SLURM_STEP_ID", "")
    if not step_id.isdecimal() or int(step_id) >= _SLURM_LAST_STEP_ID:
        return False
    return environment.get("SLURM_NTASKS", "1") != "1"


def _rank(
    environment: Mapping[str, str], rank_name: str, local_rank_name: str, world_size_name: str, init_method: str
) -> RankEnvironment:
    values = []
    for name in (rank_name, local_rank_name, world_size_name):
        text = environment.get(name, "")
        if not text.isdecimal():
            raise ConfigError(f"The launcher set {name}={text!r}, which is not a number; start the ranks again.")
        values.append(int(text))
    rank, local_rank, world_size = values
    if rank >= world_size:
        raise ConfigError(
            f"The launcher set {rank_name}={rank} and {world_size_name}={world_size}; ranks count from 0."
        )
    return RankEnvironment(rank, local_rank, world_size, init_method)
