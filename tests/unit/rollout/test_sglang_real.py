"""The client, every transport of weights and the fleet with two real SGLang servers on the CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import httpx
import psutil
import pytest
import torch
from transformers import AutoTokenizer

from megacov.errors import RolloutError
from megacov.rollout import (
    Fleet,
    GenerateRequest,
    Member,
    Membership,
    PartialRollouts,
    PromptSampler,
    RolloutClient,
    Sampler,
    ServerKeys,
    SglangServer,
)
from megacov.rollout.client.capabilities import Capabilities
from megacov.types import Completion, Prompt
from megacov.weight_sync import ServersFailedError
from tests.support.judging import judged_by
from tests.support.partial_rollouts import any_is_cut
from tests.support.sglang_servers import (
    LOADER,
    MODEL,
    PROMPT,
    START_TIMEOUT_S,
    VOCAB_SIZE,
    assert_hold,
    changed_weights,
    clients_of,
    log_probs_of,
    make_transport,
    sglang_servers,
    shards_of,
    wait_for_running,
)

pytestmark = [pytest.mark.sglang, pytest.mark.dist]


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[tuple[list[SglangServer], ServerKeys]]:
    with sglang_servers(2, tmp_path_factory.mktemp("sglang")) as started:
        yield started


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


def test_servers_report_their_capabilities(running):
    async def run():
        for client in clients_of(running):
            known = await client.learn_capabilities()
            assert known == Capabilities(request_seeds=False, watchdog_s=300.0, loaders=(LOADER,))

    asyncio.run(run())


def test_weights_arrive_the_same_by_every_transport(running, tmp_path):
    with asyncio.Runner() as runner:
        clients = clients_of(running)
        sums = []
        for number, name in enumerate(("disk", "broadcast", "ipc", "reshard")):
            transport = make_transport(name, clients, runner.run, tmp_path, verify="checksums")
            other, weights = changed_weights(number), changed_weights(9)
            for version, each in ((10 * number, other), (10 * number + 1, weights)):
                times = transport.push(version, shards_of(each) if name == "reshard" else each.items())
                assert times.num_bytes == sum(tensor.nbytes for tensor in weights.values())
            runner.run(assert_hold(clients, weights, str(10 * number + 1)))
            sums.append(runner.run(clients[0].weights.checksums()))
        assert sums == sums[:1] * 4


@pytest.mark.parametrize("pause_mode", ["abort", "retract", "in_place"])
def test_pause_modes_decide_what_happens_to_running_requests(running, tmp_path, pause_mode):
    weights = changed_weights(9)
    with asyncio.Runner() as runner:
        client = clients_of(running)[0]
        transport = make_transport("broadcast", [client], runner.run, tmp_path, pause_mode=pause_mode)
        transport.push(1, weights.items())

        completions: list[Completion] = []
        is_pushed = False

        async def sample() -> None:
            """Keep a request under way, so that the push meets one however slow this process is."""
            while not is_pushed:
                completions.extend(await client.generate(GenerateRequest(input_ids=PROMPT, n=128, max_new_tokens=56)))

        task = runner.get_loop().create_task(sample())
        runner.run(wait_for_running(running[0][0], running[1], 2))
        transport.push(2, weights.items())
        is_pushed = True
        runner.run(asyncio.wait_for(task, 60.0))
        versions = {tuple(span.version for span in each.version_spans) for each in completions}
        has_aborted = "abort" in {each.finish_reason for each in completions}
        assert has_aborted == (pause_mode == "abort")
        assert (("1", "2") in versions) == (pause_mode != "abort")
        # The weights are equal, and so are their log-probs of all tokens.
        for each in completions[:4]:
            expected = log_probs_of(weights, PROMPT, each.token_ids)
            torch.testing.assert_close(torch.tensor(each.log_probs).double(), expected, atol=1e-4, rtol=0.0)


def test_a_server_that_stops_in_a_broadcast_is_named_and_takes_a_later_one(running, tmp_path):
    server = psutil.Process(running[0][0].pid)
    scheduler = next(each for each in server.children(recursive=True) if "scheduler" in each.name())
    weights = changed_weights(9)

    def stopping() -> Iterator[tuple[str, torch.Tensor]]:
        for number, pair in enumerate(weights.items()):
            if number == len(weights) // 2:
                scheduler.suspend()
            yield pair

    with asyncio.Runner() as runner:
        clients = clients_of(running, request_timeout_s=10.0)
        served = list(clients)
        transport = make_transport("broadcast", served, runner.run, tmp_path, timeout_s=12.0)
        transport.push(1, changed_weights(1).items())
        try:
            with pytest.raises(ServersFailedError) as failure:
                transport.push(2, stopping())
            assert list(failure.value.failures) == [clients[0]]
            del served[0]
            transport.push(3, weights.items())
        finally:
            scheduler.resume()
        served.insert(0, clients[0])
        transport.push(4, weights.items())
        runner.run(assert_hold(clients, weights, "4"))


def test_a_pause_aborts_with_status_200_and_the_tokens_so_far(running):
    async def run():
        client = clients_of(running)[0]
        # 50 tokens in many copies take long enough, without a way to suppress the end of a sequence.
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
        await client.weights.begin()
        with pytest.raises(RolloutError, match="session is already open"):
            await client.weights.begin()
        await client.weights.end()
        with pytest.raises(RolloutError, match="no weight-update session is open"):
            await client.weights.end()
        with pytest.raises(RolloutError, match="does not exist"):
            await client.weights.destroy_group("nobody")
        await client.weights.set_version("renamed")
        assert (await client.model_info())["weight_version"] == "renamed"
        await client.abort_request("nobody")
        await client.abort_request(None)
        await client.flush_cache()

    asyncio.run(run())


def test_unfinished_completions_are_continued_under_new_weights(running, tmp_path):
    weights = {str(version): changed_weights(version) for version in range(1, 9)}
    source = (Prompt(index, "", (4, 5, 6, 7 + index % 4), "") for index in range(100))
    samples, carried = [], ()
    with asyncio.Runner() as runner:
        clients = clients_of(running)
        transport = make_transport("disk", clients, runner.run, tmp_path)
        verify = judged_by(lambda text, _: float(len(text)))
        prompt_sampler = PromptSampler(clients=clients, verify=verify, samples_per_prompt=8, max_response_length=48)
        decode = partial(AutoTokenizer.from_pretrained(MODEL).decode, skip_special_tokens=True)
        for version in weights:
            # On busy cores all completions may end at about the same time, so that none is cut.
            is_cut = any_is_cut(carried)
            transport.push(int(version), weights[version].items())
            versions = {"expected_version": version, "trained_version": int(version) + 1}
            settings = PartialRollouts(decode=decode, max_staleness=9, extra_prompts=0 if is_cut else 6)
            sample = Sampler(prompt_sampler, settings).sample_groups
            sampled = runner.run(sample(source, 6 if is_cut else 2, carried=carried, **versions))
            samples, carried = samples + sampled.samples, sampled.carried
            if is_cut:
                break
    assert carried == ()
    assert sorted(sample.prompt.index for sample in samples[::8]) == list(range(len(samples) // 8))
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

    async def batch(fleet: Fleet) -> list[list[Completion]]:
        request = GenerateRequest(input_ids=PROMPT, n=8, max_new_tokens=48)
        return await asyncio.gather(*(fleet.generate(request) for _ in range(32)))

    async def both_serve(fleet: Fleet) -> None:
        while len(fleet.membership.serving) < 2:
            await asyncio.sleep(0.1)

    async def bring_up_to_date(client: RolloutClient) -> None:
        await transport.bring_up_to_date(client)

    async def run(fleet: Fleet) -> None:
        sampling = asyncio.create_task(fleet.membership.watched(batch(fleet)))
        await asyncio.sleep(0.3)
        assert not sampling.done()
        psutil.Process(servers[0].pid).children()[0].kill()
        completions = await sampling
        assert [len(each) for each in completions] == [8] * 32
        assert all(span.version == "9" for each in completions for one in each for span in one.version_spans)
        assert fleet.num_failovers > 0
        await asyncio.wait_for(fleet.membership.watched(both_serve(fleet)), START_TIMEOUT_S)
        assert fleet.membership.num_restarts == 1
        await assert_hold(fleet.membership.serving, weights, "9")
        await fleet.membership.aclose()

    with asyncio.Runner() as runner:
        fleet = Fleet(
            Membership(
                members=[Member(make_client(server.address), server) for server in servers],
                make_client=make_client,
                bring_up_to_date=bring_up_to_date,
                max_restarts=1,
                start_timeout_s=START_TIMEOUT_S,
            )
        )
        transport = make_transport("disk", fleet.membership.receiving, runner.run, tmp_path)
        transport.push(9, weights.items())
        runner.run(run(fleet))


def test_a_server_that_is_killed_in_a_broadcast_is_named_and_the_other_goes_on(running, tmp_path):
    """Must be the last test, since it leaves only one server."""
    servers, _ = running
    weights = changed_weights(9)

    def killing() -> Iterator[tuple[str, torch.Tensor]]:
        for number, pair in enumerate(weights.items()):
            if number == len(weights) // 2:
                psutil.Process(servers[0].pid).children()[0].kill()
            yield pair

    with asyncio.Runner() as runner:
        served = list(clients := clients_of(running, request_timeout_s=30.0))
        transport = make_transport("broadcast", served, runner.run, tmp_path)
        with pytest.raises(ServersFailedError) as failure:
            transport.push(1, killing())
        assert list(failure.value.failures) == [clients[0]]
        del served[0]
        transport.push(2, weights.items())
        runner.run(assert_hold(served, weights, "2"))
