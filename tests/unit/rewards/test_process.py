"""A verifier's process starts, whatever else this process has open."""

from __future__ import annotations

import os
import resource

from megacov.rewards.process import check_verifier
from megacov.rewards.settings import VerifierSettings


def test_processes_start_beside_more_than_a_thousand_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert check_verifier(VerifierSettings("tests.support.unruly:judge"), timeout_s=60.0).wanted == (
            "text",
            "answer",
        )
    finally:
        for each in files:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
