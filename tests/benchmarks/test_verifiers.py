"""The benchmark of the verifier pool, small: every verdict comes, those of processes that end included."""

from __future__ import annotations

import asyncio

from benchmarks.verifiers import VERIFIER, judged
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
