"""The client, the transport by disk and the broadcast of weights with two real SGLang servers on the CPU."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import httpx
import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Backend, PrefixStore, _new_process_group_helper, _world
from transformers import AutoTokenizer

from megacov.errors import RolloutError
from megacov.rollout import Fleet, GenerateRequest, Member, PartialSampler, RolloutClient, ServerKeys, SglangServer
from megacov.rollout.capabilities import Capabilities
from megacov.types import Completion, Prompt, WeightBucket, WeightGroup
from megacov.weight_sync import DiskTransport
from tests.support.sglang_servers import (
    MODEL,
    START_TIMEOUT_S,
    VOCAB_SIZE,
    changed_weights,
    log_probs_of,
    sglang_servers,
)

pytestmark = [pytest.mark.sglang, pytest.mark.dist]
PROMPT = (4, 5, 6, 7)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[tuple[list[SglangServer], ServerKeys]]:
    with sglang_servers(2, tmp_path_factory.mktemp("sglang")) as started:
        yield started


def clients_of(running: tuple[list[SglangServer], ServerKeys]) -> list[RolloutClient]:
    servers, keys = running
    options = {"vocab_size": VOCAB_SIZE, "request_timeout_s": 60.0, "api_key": keys.api, "admin_key": keys.admin}
    return [RolloutClient(server.address, **options) for server in servers]


async def assert_both_hold(clients: list[RolloutClient], weights: dict[str, torch.Tensor], version: str) -> None:
    """By what they say, by what they sample, and by checksums."""
    request = GenerateRequest(input_ids=PROMPT, n=4, max_new_tokens=12)
    for client in clients:
        assert (await client.model_info())["weight_version"] == version
        for completion in await client.generate(request):
            assert {span.version for span in completion.version_spans} == {version}
            expected = log_probs_of(weights, PROMPT, completion.token_ids)
            torch.testing.assert_close(torch.tensor(completion.log_probs).double(), expected, atol=1e-4, rtol=0.0)
    sums = [await client.weight_checksums() for client in clients]
    assert sums[0] == sums[1]


def test_every_process_of_a_server_hides_the_keys(running):
    servers, keys = running
    for server in servers:
        supervisor = psutil.Process(server.pid)
        below = supervisor.children(recursive=True)
        assert len(below) >= 3
        for process in (supervisor, *below):
            seen = [*process.cmdline(), *process.environ().values()]
            assert not any(key in word for key in (keys.api, keys.admin) for word in seen)


def test_nobody_gets_in_without_the_right_key(running):
    servers, keys = running
    for server in servers:
        for path, key in (("/server_info", keys.admin), ("/flush_cache", keys.api), ("/model_info", "wrong")):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(server.address + path, headers=headers, trust_env=False).status_code == 401
        assert httpx.post(server.address + "/generate", json={}, trust_env=False).status_code == 401


def test_weights_arrive_by_disk_on_both(running, tmp_path):
    async def run():
        clients = clients_of(running)
        for client in clients:
            assert await client.learn_capabilities() == Capabilities(request_seeds=False)
        transport = DiskTransport(clients, source_model=MODEL, directory=tmp_path / "weights")
        for version in (1, 2):
            weights = changed_weights(version)
            await transport.push(version, weights.items())
            await assert_both_hold(clients, weights, str(version))

    asyncio.run(run())


def test_a_pause_aborts_with_status_200_and_what_there_is(running):
    async def run():
        client = clients_of(running)[0]
        # Without an end of sequence it may not run on: 50 tokens in many copies last long enough.
        request = GenerateRequest(input_ids=PROMPT, n=32, max_new_tokens=56)
        waiting = asyncio.create_task(client.generate(request))
        await asyncio.sleep(0.1)
        await client.pause("abort")
        await client.resume()
        return await waiting

    completions = asyncio.run(run())
    assert len(completions) == 32
    assert all(len(completion.log_probs) == len(completion.token_ids) for completion in completions)


def test_sessions_and_versions_are_refused_and_taken_as_the_captures_say(running):
    async def run():
        client = clients_of(running)[0]
        await client.begin_weight_update()
        with pytest.raises(RolloutError, match="session is already open"):
            await client.begin_weight_update()
        await client.end_weight_update()
        with pytest.raises(RolloutError, match="no weight-update session is open"):
            await client.end_weight_update()
        with pytest.raises(RolloutError, match="does not exist"):
            await client.destroy_weights_update_group("nobody")
        await client.update_weight_version("renamed")
        assert (await client.model_info())["weight_version"] == "renamed"
        await client.abort_request("nobody")
        await client.abort_request(None)
        await client.flush_cache()

    asyncio.run(run())


def join_as_rank_zero(group: WeightGroup, store: dist.TCPStore) -> dist.ProcessGroup:
    """A group of this process and servers, apart from whatever groups this process has."""
    process_group, _ = _new_process_group_helper(
        group.world_size,
        0,
        [],
        Backend(group.backend),
        PrefixStore(group.name, store),
        group_name=group.name,
        timeout=timedelta(seconds=60),
        backend_options=None,
    )
    _world.pg_group_ranks[process_group] = {rank: rank for rank in range(group.world_size)}
    return process_group


def test_weights_arrive_by_broadcast_on_both(running):
    weights = changed_weights(7)
    names = sorted(weights)
    bucket = WeightBucket(
        names=tuple(names),
        dtypes=("float32",) * len(names),
        shapes=tuple(tuple(weights[name].shape) for name in names),
        is_flattened=True,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, 3, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))

    async def run():
        clients = clients_of(running)
        groups = [
            WeightGroup(
                name="weights",
                master_address="127.0.0.1",
                master_port=port,
                rank_offset=rank,
                world_size=3,
                backend="gloo",
            )
            for rank in (1, 2)
        ]
        process_group, *_ = await asyncio.gather(
            asyncio.to_thread(join_as_rank_zero, groups[0], store),
            *(client.init_weights_update_group(group) for client, group in zip(clients, groups, strict=True)),
        )
        flat = torch.cat([weights[name].contiguous().view(-1).view(torch.uint8) for name in names])
        for client in clients:
            await client.pause("retract")
            await client.begin_weight_update()
        await asyncio.gather(
            asyncio.to_thread(dist.broadcast, flat, 0, group=process_group),
            *(
                client.update_weights_from_distributed(bucket, group_name="weights", weight_version="seven")
                for client in clients
            ),
        )
        for client in clients:
            await client.end_weight_update()
            await client.flush_cache()
            await client.resume()
        await assert_both_hold(clients, weights, "seven")
        for client in clients:
            await client.destroy_weights_update_group("weights")

    asyncio.run(run())


def test_unfinished_completions_are_gone_on_with_under_new_weights(running, tmp_path):
    weights = {str(version): changed_weights(version) for version in range(1, 5)}

    async def run():
        clients = clients_of(running)
        transport = DiskTransport(clients, source_model=MODEL, directory=tmp_path / "weights")
        sampler = PartialSampler(
            clients=clients,
            verify=lambda text, _: float(len(text)),
            samples_per_prompt=8,
            max_response_length=48,
            decode=partial(AutoTokenizer.from_pretrained(MODEL).decode, skip_special_tokens=True),
            max_staleness=4,
            extra_prompts=6,
        )
        source = (Prompt(index, "", (4, 5, 6, 7 + index % 4), "") for index in range(100))
        phases, carried = [], ()
        for version, tensors in weights.items():
            await transport.push(int(version), tensors.items())
            settings = {"carried": carried, "expected_version": version, "trained_version": int(version) + 1}
            is_last = version == "4"
            sampler.extra_prompts = 0 if is_last else 6
            phases.append(await sampler.sample_phase(source, 6 if is_last else 2, **settings))
            carried = phases[-1].carried
        assert carried == ()
        return phases

    samples = [sample for phase in asyncio.run(run()) for sample in phase.samples]
    assert sorted(sample.prompt.index for sample in samples[::8]) == list(range(3 * 2 + 6))
    pieced = [sample for sample in samples if len(sample.completion.version_spans) > 1]
    assert pieced
    for sample in pieced[:6]:
        completion = sample.completion
        for span in completion.version_spans:
            expected = log_probs_of(weights[span.version], sample.prompt.token_ids, completion.token_ids)
            found = torch.tensor(completion.log_probs).double()[span.start : span.end]
            torch.testing.assert_close(found, expected[span.start : span.end], atol=1e-4, rtol=0.0)


@pytest.mark.slow
def test_a_server_that_is_killed_in_a_batch_is_replaced_and_comes_back_with_the_current_weights(running, tmp_path):
    servers, keys = running
    weights = changed_weights(9)

    def make_client(address: str) -> RolloutClient:
        keyed = {"api_key": keys.api, "admin_key": keys.admin}
        return RolloutClient(address, vocab_size=VOCAB_SIZE, request_timeout_s=60.0, max_retries=1, **keyed)

    async def run():
        members = [Member(make_client(server.address), server) for server in servers]
        fleet = Fleet(
            members=members,
            make_client=make_client,
            bring_up_to_date=lambda client: transport.bring_up_to_date(client),
            max_restarts=1,
            start_timeout_s=START_TIMEOUT_S,
        )
        transport = DiskTransport(fleet.serving, source_model=MODEL, directory=tmp_path / "weights")
        await transport.push(9, weights.items())

        async def batch() -> list[list[Completion]]:
            request = GenerateRequest(input_ids=PROMPT, n=8, max_new_tokens=48)
            return await asyncio.gather(*(fleet.generate(request) for _ in range(32)))

        async def both_serve() -> None:
            while len(fleet.serving) < 2:
                await asyncio.sleep(0.1)

        sampling = asyncio.create_task(fleet.watched(batch()))
        await asyncio.sleep(0.3)
        assert not sampling.done()
        psutil.Process(servers[0].pid).children()[0].kill()
        completions = await sampling
        assert [len(each) for each in completions] == [8] * 32
        assert all(span.version == "9" for each in completions for one in each for span in one.version_spans)
        assert fleet.num_failovers > 0
        await asyncio.wait_for(fleet.watched(both_serve()), START_TIMEOUT_S)
        assert fleet.num_restarts == 1
        await assert_both_hold(fleet.serving, weights, "9")
        await fleet.aclose()

    asyncio.run(run())
