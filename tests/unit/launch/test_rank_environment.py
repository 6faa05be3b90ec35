"""Which rank a process is, by the variables of its launcher; a launcher that forgets one is named."""

from __future__ import annotations

import pytest

from megacov.errors import ConfigError
from megacov.launch.rank_environment import RankEnvironment, rank_from_environment

OWN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MEGACOV_STORE": "/tmp/store"}
TORCHRUN = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (OWN, (1, 1, 4, "file:///tmp/store")),
        (TORCHRUN, (9, 1, 16, "env://")),
        (SRUN, (5, 1, 8, "env://")),
        ({**SRUN, **TORCHRUN}, (9, 1, 16, "env://")),
        ({**SRUN, **TORCHRUN, **OWN}, (1, 1, 4, "file:///tmp/store")),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        ({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}, None),
        # The shell that salloc opens is an interactive step and not a rank.
        ({**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFA)}, None),
    ],
)
def test_the_rank_is_read_from_the_environment(environment, expected):
    rank = rank_from_environment(environment)
    assert rank == (None if expected is None else RankEnvironment(*expected))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({name: value for name, value in SRUN.items() if name != "MASTER_PORT"}, "8 ranks without MASTER_PORT"),
        ({**TORCHRUN, "RANK": "one"}, "RANK='one'"),
        ({name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}, "without LOCAL_RANK"),
        ({"RANK": "1", "WORLD_SIZE": "4"}, "are set without LOCAL_RANK and MASTER_ADDR and MASTER_PORT; let torchrun"),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"}, "are set without MASTER_PORT"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "are set without MASTER_ADDR"),
        ({**TORCHRUN, "MASTER_PORT": "65536"}, "with MASTER_PORT='65536', which is not a port"),
        ({**SRUN, "MASTER_PORT": "29500;"}, "8 ranks with MASTER_PORT='29500;'"),
        ({**OWN, "RANK": "4"}, "RANK=4 and WORLD_SIZE=4"),
    ],
)
def test_a_broken_environment_is_named(environment, message):
    with pytest.raises(ConfigError, match=message):
        rank_from_environment(environment)
