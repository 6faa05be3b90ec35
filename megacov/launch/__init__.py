"""Start and end the processes of a run: local ranks, and children that end with their parent. No torch here."""

from __future__ import annotations

from megacov.launch.heartbeat import start_heartbeat
from megacov.launch.local_ranks import run_local_ranks
from megacov.launch.process import PARENT_PID_VARIABLE, die_with_parent, stop_processes
from megacov.launch.rank_environment import RankEnvironment, rank_from_environment

__all__ = [
    "PARENT_PID_VARIABLE",
    "RankEnvironment",
    "die_with_parent",
    "rank_from_environment",
    "run_local_ranks",
    "start_heartbeat",
    "stop_processes",
]
