"""SGLang's own watchdog and a long push of weights, on a real server on the CPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megacov.rollout import GenerateRequest
from tests.support.sglang_servers import (
    PROMPT,
    assert_hold,
    changed_weights,
    clients_of,
    make_transport,
    sglang_servers,
    wait_for_running,
)

pytestmark = [pytest.mark.sglang, pytest.mark.dist]


@pytest.mark.slow
def test_a_pause_in_place_that_outlasts_the_watchdog_kills_no_server(tmp_path: Path) -> None:
    weights, watchdog_s = changed_weights(9), 8

    def gathered_slowly() -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, tensor) in enumerate(weights.items()):
            time.sleep(0.3 * watchdog_s if number < 6 else 0.0)
            yield name, tensor

    with sglang_servers(1, tmp_path, **{"watchdog-timeout": watchdog_s}) as running, asyncio.Runner() as runner:
        client = clients_of(running)[0]
        assert runner.run(client.learn_capabilities()).watchdog_s == watchdog_s
        transport = make_transport("ipc", [client], runner.run, tmp_path, pause_mode="in_place", bucket_bytes=1)
        request = GenerateRequest(input_ids=PROMPT, n=128, max_new_tokens=56)
        task = runner.get_loop().create_task(client.generate(request))
        runner.run(wait_for_running(running[0][0], running[1], 2))
        transport.push(1, gathered_slowly())
        completions = runner.run(asyncio.wait_for(task, 60.0))
        assert {span.version for span in completions[-1].version_spans} <= {"default", "1"}
        runner.run(assert_hold([client], weights, "1"))
