"""A server that cannot do what a run needs is refused in one sentence."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from megacov.config import load_config
from megacov.errors import RolloutError
from megacov.rollout import Capabilities
from megacov.trainer.rollout.checks import check_server
from tests.support.sglang_servers import RUN

HERE = "http://127.0.0.1:30000"
COLOCATED = ("rollout.colocated=true", "weight_sync.transport=ipc")


def test_unusable_servers_are_refused():
    plain, colocated = load_config(RUN), load_config(RUN, COLOCATED)
    able = Capabilities(memory_saver=True)
    check_server(plain, Capabilities(), address=HERE, is_own=True)
    check_server(colocated, able, address=HERE, is_own=True)
    with pytest.raises(RolloutError, match="cannot give its memory back: start it with --enable-memory-saver"):
        check_server(colocated, Capabilities(), address=HERE, is_own=True)
    with pytest.raises(RolloutError, match="0.1:30000 has 2 data-parallel copies.* set weight_sync.transport=disk"):
        check_server(colocated, dataclasses.replace(able, other_parallel=2), address=HERE, is_own=True)
    with pytest.raises(RolloutError, match="CVE-2026-3059"):
        check_server(plain, Capabilities(version="0.5.9"), address=HERE, is_own=True)
    check_server(plain, Capabilities(version="0.5.9"), address=HERE, is_own=False)


@pytest.mark.parametrize(
    ("transport", "address", "sentence"),
    [
        ("ipc", "http://192.0.2.7:1", "ipc and http://192.0.2.7:1 is not on the loopback.* set weight_sync.transport"),
        ("broadcast", "http://192.0.2.7:1", "host is 127.0.0.1, and http://192.0.2.7:1 is on another machine.* set "),
        ("broadcast", "http://no-such-host.invalid:1", "no-such-host.invalid:1 is on another machine"),
        ("ipc", "http://localhost:1", None),
        ("ipc", "http://[::1]:1", None),
        ("broadcast", HERE, None),
        ("broadcast", f"http://{socket.gethostname()}:1", None),
        ("disk", "http://192.0.2.7:1", None),
    ],
)
def test_weights_must_be_able_to_reach_a_server(transport: str, address: str, sentence: str | None):
    config = load_config(RUN, (f"weight_sync.transport={transport}",))
    if sentence is None:
        check_server(config, Capabilities(), address=address, is_own=False)
    else:
        with pytest.raises(RolloutError, match=sentence):
            check_server(config, Capabilities(), address=address, is_own=False)


def test_servers_elsewhere_are_accepted_if_the_trainer_has_an_address():
    config = load_config(RUN, ("weight_sync.transport=broadcast", "weight_sync.host=10.0.0.5"))
    check_server(config, Capabilities(), address="http://192.0.2.7:1", is_own=False)
    old = Capabilities(version="0.5.5", flattened_buckets=False)
    with pytest.raises(RolloutError, match="runs SGLang 0.5.5, which takes tensors only one by one: ") as caught:
        check_server(config, old, address="http://192.0.2.7:1", is_own=False)
    # ipc could not reach it either.
    assert str(caught.value).endswith("install 0.5.6 or newer, or set weight_sync.transport=disk.")
