"""The load on servers that are killed, small; and that its accounting finds what it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rollout_load import faults_of, run_load

pytestmark = pytest.mark.dist


def test_every_request_is_answered_once_while_servers_are_killed(tmp_path: Path) -> None:
    done = run_load(
        tmp_path, num_requests=400, num_servers=2, concurrency=4, kill_every_s=0.15, max_kills=2, watch_s=0.2
    )
    assert (done.kills, done.restarts) == (2, 2)
    assert done.failovers > 0
    assert len(done.answers) == 400
    assert faults_of(done.answers) == []
    _assert_faults_are_found(done.answers)


def _assert_faults_are_found(answers: list) -> None:
    [first], [second] = answers[:2]
    assert faults_of([[], [second]]) == ["request 0: 0 answers"]
    assert faults_of([[first, first], [second]]) == ["request 0: 2 answers"]
    of_another, stale = faults_of([[second], [second]]), replace(first, version_spans=())
    assert len(of_another) == 1 and "another prompt" in of_another[0]
    assert "weights of []" in faults_of([[stale], [second]])[0]


@pytest.mark.slow
def test_ten_thousand_requests_while_a_server_is_killed_every_five_seconds(tmp_path: Path) -> None:
    done = run_load(tmp_path, num_requests=10_000, num_servers=4, concurrency=64, kill_every_s=5.0)
    assert done.kills > 0
    assert faults_of(done.answers) == []
