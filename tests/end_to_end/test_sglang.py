"""`megacov train` with real SGLang servers on the CPU: it trains on what they sample, and leaves nothing of them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.test_train import SMALL, scalars_of
from tests.support.command import DEADLINE_S, descendants, run, started, still_there
from tests.support.processes import wait_until
from tests.support.sglang_servers import RUN, START_TIMEOUT_S

pytestmark = [pytest.mark.sglang, pytest.mark.dist]


# Each with what a server is asked for once an update, before the first step as well.
TRANSPORTS = {
    "disk": ("/update_weights_from_disk", "weight_sync.verify=version"),
    "broadcast": ("/end_weight_update", "parallel.tensor=2", "weight_sync.verify=checksums"),
    "reshard": ("/update_weights_from_tensor", "parallel.tensor=2", "weight_sync.verify=checksums"),
    "ipc": ("/end_weight_update", "parallel.pipeline=2"),
    "ipc_shards": ("/end_weight_update", "parallel.tensor=2"),
}


@pytest.mark.parametrize(
    "transport", ["disk", *(pytest.param(name, marks=pytest.mark.slow) for name in [*TRANSPORTS][1:])]
)
def test_a_run_trains_with_two_servers(transport: str, tmp_path: Path) -> None:
    folder, (path, *overrides) = tmp_path / "run", TRANSPORTS[transport]
    overrides += [f"weight_sync.transport={transport}", "run.steps=3", f"run.directory={folder}"]
    arguments = ("train", RUN, *overrides, *SMALL)
    ended = run(*arguments, log=tmp_path / "log", deadline_s=START_TIMEOUT_S + DEADLINE_S)
    assert ended.code == 0, ended.output
    assert ended.left == []
    assert "step 3/3" in ended.output
    assert "Traceback" not in ended.output
    scalars = scalars_of(folder)
    # Samples come from the weights that the trainer holds, before the first update and after every later one.
    assert len(scalars["rollout/mismatch_max"]) == 3
    assert max(scalars["rollout/mismatch_max"]) < 1e-4
    assert max(scalars["policy/grad_norm"]) > 0  # a step whose groups all have equal rewards has no gradient
    assert scalars["rollout/version_lag_max"] == [0.0] * 3
    logs = sorted((folder / "logs").glob("server_*.log"))
    assert [log.name for log in logs] == ["server_0.log", "server_1.log"]
    for log in logs:
        assert log.stat().st_mode & 0o777 == 0o600
        text = log.read_text()
        # By some, the servers' ranks describe their parameters before the first update, or before each.
        described = {"reshard": 1, "ipc_shards": 4}.get(transport, 0)
        assert text.count(f'"POST {path} HTTP/1.1" 200') == 4 + described
        assert '"POST /generate HTTP/1.1" 200' in text


@pytest.mark.slow
# Each with a server's updates before the second push writes: those in which it describes itself, and the first push.
@pytest.mark.parametrize(("transport", "number"), [("reshard", 2), ("ipc_shards", 3)])
def test_a_run_goes_on_when_a_server_is_killed_while_weights_come(transport: str, number: int, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = (f"weight_sync.transport={transport}", "parallel.tensor=2", "run.steps=4", f"run.directory={folder}")
    with started("train", RUN, *overrides, *SMALL, log=log) as process:
        server_log = folder / "logs" / "server_1.log"

        def second_push_begins() -> bool:
            return server_log.exists() and server_log.read_text().count('"POST /begin_weight_update') > number

        wait_until(second_push_begins, timeout_s=START_TIMEOUT_S + DEADLINE_S)
        for each in descendants(process.pid):
            with suppress(FileNotFoundError, psutil.NoSuchProcess):  # it has just ended
                if os.readlink(f"/proc/{each.pid}/fd/1") == str(server_log):
                    each.kill()
        process.wait(timeout=START_TIMEOUT_S + DEADLINE_S)
        output = log.read_text()
        assert process.returncode == 0, output
    assert "step 4/4" in output and "Traceback" not in output
    scalars = scalars_of(folder)
    assert max(scalars["rollout/mismatch_max"]) < 1e-4 and len(scalars["rollout/mismatch_max"]) == 4
    assert sum(scalars["rollout/server_restarts"]) == 1


def test_a_killed_trainer_leaves_no_server(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("train", RUN, "rollout.servers=1", f"run.directory={tmp_path / 'run'}", *SMALL)
    with started(*arguments, log=log) as process:
        # The rank, the supervisor, the server, its tracker of resources, scheduler and detokenizer.
        wait_until(lambda: len(descendants(process.pid)) >= 6, timeout_s=START_TIMEOUT_S)
        below = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert still_there(below, grace_s=30.0) == []
