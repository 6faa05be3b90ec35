"""Weights in requests: whole on every server or on none, and never to another machine."""

from __future__ import annotations

import base64
import pickle
from typing import Any

import pytest
import torch

from megacov.errors import WeightSyncError
from megacov.weight_sync import ServersFailedError, SessionSettings, TensorTransport
from megacov.weight_sync.tensors import serialize
from tests.support.scripted_server import DROP, Call, Reply, Script, hang, scripted_clients

WEIGHTS = {"a": torch.ones(2, 3), "b": torch.zeros(4), "c": torch.full((2,), 3.0)}
BUCKET_BYTES = 24  # of "a"; "b" and "c" share one
SESSION = [
    "/pause_generation",
    "/begin_weight_update",
    "/update_weights_from_tensor",
    "/update_weights_from_tensor",
    "/end_weight_update",
    "/flush_cache",
    "/update_weight_version",
    "/model_info",
    "/continue_generation",
]


class Receiver:
    """Keeps the tensors it gets, and fails on the n-th call of a chosen path."""

    def __init__(self, path: str = "", failure: Reply | Script | None = None, *, at: int = 1) -> None:
        self.path, self.failure, self.at = path, failure, at
        self.calls: list[str] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.version, self.is_gone, self.sums = "default", False, {"w": "1"}

    async def __call__(self, call: Call) -> Reply:
        if self.is_gone:
            return DROP
        self.calls.append(call.path)
        if call.path == self.path and self.calls.count(call.path) == self.at and self.failure is not None:
            self.is_gone = self.failure is DROP
            return self.failure if isinstance(self.failure, Reply) else await self.failure(call)
        if call.path == "/update_weights_from_tensor":
            for payload in call.body["serialized_named_tensors"]:
                self.tensors |= dict(pickle.loads(base64.b64decode(payload)))
        if call.path == "/update_weight_version":
            self.version = call.body["new_version"]
        ranks = [{"checksums": self.sums}]
        return Reply({"success": True, "weight_version": self.version, "new_version": self.version, "ranks": ranks})


def push(*servers: Receiver, request_timeout_s: float = 10.0, **settings: Any) -> list[str] | WeightSyncError:
    """Push once; gives the addresses of all servers, or the error, with the failed servers' numbers in `failures`."""
    with scripted_clients(*servers, request_timeout_s=request_timeout_s) as (clients, run):
        transport = TensorTransport(clients, run=run, settings=SessionSettings(bucket_bytes=BUCKET_BYTES, **settings))
        try:
            transport.push(1, WEIGHTS.items())
        except ServersFailedError as error:
            error.failures = {clients.index(client): why for client, why in error.failures.items()}
            return error
        return [client.address for client in clients]


def test_a_push_is_one_transaction_in_buckets():
    one, other = Receiver(), Receiver()
    push(one, other)
    for server in (one, other):
        assert server.calls == SESSION
        assert server.version == "1"
        assert server.tensors.keys() == WEIGHTS.keys()
        assert all(torch.equal(server.tensors[name], tensor) for name, tensor in WEIGHTS.items())


def test_keys_and_values_that_are_kept_are_not_flushed():
    server = Receiver()
    push(server, pause_mode="in_place")
    assert server.calls == [path for path in SESSION if path != "/flush_cache"]


REFUSAL = Reply({"success": False, "message": "broken"}, status=400)
FAULTS = {"refuses": REFUSAL, "dies at": DROP, "hangs at": hang}
CASES = {f"{what} {path}": (path, fault, 1) for what, fault in FAULTS.items() for path in dict.fromkeys(SESSION)}
CASES["dies in the middle"] = ("/update_weights_from_tensor", DROP, 2)


@pytest.mark.parametrize(("path", "failure", "at"), CASES.values(), ids=CASES.keys())
def test_after_a_failure_anywhere_no_server_resumes_and_the_culprit_is_named(path, failure, at):
    good, bad = Receiver(), Receiver(path, failure, at=at)
    error = push(good, bad, request_timeout_s=1.5 if failure is hang else 10.0)
    assert isinstance(error, ServersFailedError)
    assert list(error.failures) == [1]
    assert bad.version == "default" or path in ("/model_info", "/continue_generation", "/update_weight_version")
    if path != "/continue_generation":
        assert "/continue_generation" not in good.calls + bad.calls
    # An open session would prevent the next push.
    assert good.calls.count("/end_weight_update") >= 1 or path == "/pause_generation"


@pytest.mark.parametrize("path", ["/pause_generation", "/update_weights_from_tensor", "/model_info"])
def test_a_server_that_hangs_is_given_up_at_the_deadline_of_the_push(path):
    good, bad = Receiver(), Receiver(path, hang)
    error = push(good, bad, request_timeout_s=600.0, timeout_s=2.0)
    assert isinstance(error, ServersFailedError)
    assert list(error.failures) == [1] and "did not answer within 2 s" in str(error)


def test_checksums_find_the_server_that_is_unlike_the_others():
    servers = [Receiver() for _ in range(3)]
    assert isinstance(push(*servers, verify="checksums"), list)
    servers = [Receiver() for _ in range(3)]
    servers[1].sums = {"w": "2"}
    error = push(*servers, verify="checksums")
    assert isinstance(error, ServersFailedError)
    assert list(error.failures) == [1]
    servers = [Receiver() for _ in range(2)]
    servers[1].sums = {"w": "2"}
    error = push(*servers, verify="checksums")
    assert isinstance(error, ServersFailedError)
    assert list(error.failures) == [0, 1]


def test_no_pickle_leaves_the_machine():
    server = Receiver()
    with scripted_clients(server) as (clients, run):
        clients[0].connection.address = clients[0].address.replace("127.0.0.1", "10.1.2.3")
        transport = TensorTransport(clients, run=run, settings=SessionSettings())
        with pytest.raises(ServersFailedError, match="not on the loopback"):
            transport.push(1, WEIGHTS.items())
    assert server.calls == []


def test_a_payload_holds_a_view_without_its_base():
    large = torch.zeros(1000, 1000)
    assert len(serialize([("a", large[:2, :2])])) < 2000


@pytest.mark.gpu
def test_a_payload_of_a_gpu_names_its_memory():
    tensor = torch.ones(1 << 20, device="cuda")
    assert len(serialize([("a", tensor)])) < 4000
