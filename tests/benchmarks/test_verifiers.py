"""The benchmark of the verifier pool, small: every verdict comes, those of processes that end included."""

from __future__ import annotations

import asyncio

from benchmarks.verifiers import BUSY_VERIFIER, VERIFIER, judged, judged_on_arrival
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings
from megacov.rewards.settings import VerifierSettings


def test_every_verdict_comes() -> None:
    pool = VerifierPool(
        ProcessSettings(verifiers=(VerifierSettings(VERIFIER),)), num_workers=2, timeout_s=30.0, start_timeout_s=60.0
    )
    pool.start()
    try:
        _, (silence, work), right = asyncio.run(judged(pool, num_responses=12, num_replaced=2))
    finally:
        pool.close()
    assert right == 12
    assert silence > 0 < work


def test_verdicts_come_while_responses_arrive() -> None:
    settings = ProcessSettings(verifiers=(VerifierSettings(BUSY_VERIFIER),))
    pool = VerifierPool(settings, num_workers=2, timeout_s=30.0, start_timeout_s=60.0)
    pool.start()
    try:
        added_s, cost_s, mean_s, right = asyncio.run(judged_on_arrival(pool, num_responses=24, arrive_s=0.5))
    finally:
        pool.close()
    assert right == 24
    assert added_s > 0.0 and 0.0 < cost_s < mean_s
