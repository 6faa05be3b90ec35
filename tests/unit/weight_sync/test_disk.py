"""A push by disk is a transaction: all servers resume with the new weights, or none resumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megacov.checkpoint import read_manifest
from megacov.errors import WeightSyncError
from megacov.weight_sync import DiskTransport, ServersFailedError, WeightTransport, write_snapshot
from megacov.weight_sync.folder_owner import FolderOwner, read_owner, write_owner
from tests.support.scripted_server import DROP, Call, Reply, scripted_clients

WEIGHTS = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
TRANSACTION = [
    "/pause_generation",
    "/update_weights_from_disk",
    "/flush_cache",
    "/model_info",
    "/continue_generation",
]


class FakeServer:
    """Keeps the version of its last update, and fails on chosen paths."""

    def __init__(self, **failures: Reply) -> None:
        self.failures = failures
        self.version = "default"
        self.calls: list[str] = []
        self.bodies: dict[str, Any] = {}

    async def __call__(self, call: Call) -> Reply:
        self.calls.append(call.path)
        self.bodies[call.path] = call.body
        failure = self.failures.get(call.path.strip("/"))
        if failure is not None:
            return failure
        if call.path == "/update_weights_from_disk":
            assert (Path(call.body["model_path"]) / "model.safetensors").is_file()
            self.version = call.body["weight_version"]
        return Reply({"success": True, "weight_version": self.version})


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    return tmp_path / "source"


def push(servers: list[FakeServer], source: Path, versions: Iterable[int] = (1,), **options: Any) -> list[Any]:
    """Push versions one after the other; gives the times, or the error, of each."""

    outcomes: list[Any] = []
    with scripted_clients(*servers) as (clients, run):
        directory = source.parent / "weights"
        transport: WeightTransport = DiskTransport(
            clients, run=run, source_model=source, directory=directory, **options
        )
        for version in versions:
            try:
                outcomes.append(transport.push(version, WEIGHTS.items()))
            except WeightSyncError as error:
                outcomes.append(error)
    return outcomes


def test_a_push_is_one_transaction(source):
    server = FakeServer()
    (times,) = push([server], source)
    assert server.calls == TRANSACTION
    assert server.bodies["/pause_generation"] == {"mode": "retract"}
    folder = source.parent / "weights" / "v1"
    assert server.bodies["/update_weights_from_disk"] == {
        "model_path": str(folder),
        "weight_version": "1",
        "flush_cache": True,
    }
    assert times.num_bytes == 40
    assert min(times.transfer_s, times.pause_s, times.load_s, times.flush_s) > 0.0


def test_verifying_can_be_left_out(source):
    server = FakeServer()
    push([server], source, verify="none")
    assert server.calls == [path for path in TRANSACTION if path != "/model_info"]


@pytest.mark.parametrize("failing", TRANSACTION)
@pytest.mark.parametrize("dies", [False, True], ids=["refuses", "dies"])
def test_after_a_failure_no_server_resumes(source, failing, dies):
    reply = Reply({"weight_version": "0"}) if failing == "/model_info" else Reply({"message": "broken"}, status=400)
    good, bad = FakeServer(), FakeServer(**{failing.strip("/"): DROP if dies else reply})
    (error,) = push([good, bad], source)
    assert isinstance(error, ServersFailedError)
    assert len(error.failures) == 1
    if not dies:
        assert ("reports weight version 0" if failing == "/model_info" else "broken") in str(error)
    if failing != "/continue_generation":
        assert "/continue_generation" not in good.calls + bad.calls


def test_a_push_after_a_failed_one_starts_from_the_beginning(source):
    server = FakeServer(update_weights_from_disk=Reply({"message": "broken"}, status=400))

    class Repaired(FakeServer):
        async def __call__(self, call: Call) -> Reply:
            if self.calls.count("/update_weights_from_disk") == 1:
                self.failures = {}
            return await super().__call__(call)

    server = Repaired(**server.failures)
    first, second = push([server], source, versions=(1, 2))
    assert isinstance(first, WeightSyncError)
    assert not isinstance(second, WeightSyncError)
    assert server.calls == [*TRANSACTION[:2], *TRANSACTION]


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_last_versions_stay(source, keep):
    weights = source.parent / "weights"
    (weights / "v9").mkdir(parents=True)  # left by a run that was further before it was resumed
    (weights / "other").mkdir()
    (weights / "tmp-v8-k1ll3d").mkdir()
    push([FakeServer()], source, versions=(1, 2, 3, 4), keep=keep)
    expected = {f"v{version}" for version in range(5 - keep, 5)}
    assert {path.name for path in weights.iterdir()} == expected | {"other"}


def test_a_version_can_be_pushed_again(source):
    first, second = push([FakeServer()], source, versions=(1, 1))
    assert first.num_bytes == second.num_bytes == 40


@contextmanager
def transport_of(servers: list[FakeServer], source: Path, **options: Any) -> Iterator[tuple[DiskTransport, Any, Any]]:
    """A transport with its clients and the function that runs their coroutines."""
    with scripted_clients(*servers) as (clients, run):
        directory = source.parent / "weights"
        yield DiskTransport(clients, run=run, source_model=source, directory=directory, **options), clients, run


def _replace(folder: Path) -> None:
    """Another run pushes a version of the same number."""
    write_snapshot(folder, {"a": torch.full((2, 3), 9.0)}.items(), source_model=folder, max_shard_bytes=99, version=1)


@pytest.mark.parametrize("damage", [None, _replace, lambda folder: (folder / "config.json").write_text("[]")])
def test_a_restarted_server_gets_only_what_was_written(source, damage):
    server = FakeServer()
    with transport_of([server], source) as (transport, clients, run):
        transport.push(1, WEIGHTS.items(), label="1-abc")
        assert server.version == "1-abc"
        server.version, server.calls = "default", []
        folder = source.parent / "weights" / "v1"
        assert read_manifest(folder).step == 1
        if damage is None:
            run(transport.bring_up_to_date(clients[0]))
            assert server.version == "1-abc" and server.calls[-1] == "/continue_generation"
            return
        damage(folder)
        with pytest.raises(WeightSyncError, match="v1 is not as this run wrote it"):
            run(transport.bring_up_to_date(clients[0]))
        assert server.version == "default" and server.calls == []


@pytest.mark.parametrize("is_right", [True, False])
def test_a_restarted_server_must_hold_what_the_others_hold(source, is_right):
    class Summed(FakeServer):
        sums = "right"

        async def __call__(self, call: Call) -> Reply:
            if call.path == "/weights_checker":
                return Reply({"success": True, "ranks": [{"checksums": {"a": self.sums}}]})
            return await super().__call__(call)

    server = Summed()
    with transport_of([server], source, verify="checksums") as (transport, clients, run):
        transport.push(1, WEIGHTS.items())
        server.sums = "right" if is_right else "wrong"
        if is_right:
            run(transport.bring_up_to_date(clients[0]))
            return
        with pytest.raises(WeightSyncError, match="holds other weights than other servers"):
            run(transport.bring_up_to_date(clients[0]))
        assert server.calls.count("/continue_generation") == 1


def test_a_folder_that_another_run_has_taken_is_not_written_to(source):
    weights, server = source.parent / "weights", FakeServer()
    with transport_of([server], source, owner=FolderOwner("mine", "/runs/mine")) as (transport, _, _):
        transport.push(1, WEIGHTS.items())
        assert read_owner(weights) == FolderOwner("mine", "/runs/mine")
        write_owner(weights, FolderOwner("theirs", "/runs/theirs"))
        with pytest.raises(WeightSyncError, match="now belongs to the run in /runs/theirs"):
            transport.push(2, WEIGHTS.items())
    assert not (weights / "v2").exists()


def test_old_weights_that_cannot_be_removed_stop_no_push(source, capsys):
    weights = source.parent / "weights"
    weights.mkdir()
    (weights / "v0").touch()  # not a folder
    first, second = push([FakeServer()], source, versions=(1, 2), keep=1)
    assert not isinstance(first, WeightSyncError) and not isinstance(second, WeightSyncError)
    assert f"old weights stay in {weights} until the next push" in capsys.readouterr().out
