"""Completions that others abort go on from their tokens, on a real HTTP server whose answers the test scripts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from megacov.errors import RolloutError
from megacov.rollout import ContinuedClient, GenerateRequest
from megacov.rollout.sampling.partial import abort_everything
from tests.support.scripted_fleet import fleet_of
from tests.support.scripted_server import Call, Reply, completion


def decode(ids: Any) -> str:
    return "".join(chr(token) for token in ids)


class Slow:
    """Holds every request until it is aborted, at first; then answers the rest of "abcdef", with the current weights.

    An abort is answered with two tokens more, the last of which the server has not looked at.
    """

    def __init__(self) -> None:
        self.holds, self.version = True, "1-x"
        self.aborts: list[asyncio.Event] = []
        self.asked: list[tuple[str, int, int, int | None]] = []

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/abort_request":
            for each in self.aborts:
                each.set()
            return Reply()
        if call.path != "/generate":
            return Reply({"version": "0.5.23", "weight_version": self.version})
        text, params, version = decode(call.body["input_ids"]), call.body["sampling_params"], self.version
        self.asked.append((text, params["n"], params["max_new_tokens"], params.get("sampling_seed")))
        rest = [ord(each) for each in "abcdef"[len(text) - 1 :]]
        if self.holds:
            self.aborts.append(asyncio.Event())
            await self.aborts[-1].wait()
            rest = rest[:3]
        finish = "abort" if len(rest) == 3 else "stop"
        return Reply([completion(rest, text=decode(rest), finish=finish, version=version)] * params["n"])

    async def until_asked(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < number:
                await asyncio.sleep(0.01)


REQUEST = GenerateRequest(input_ids=(ord(">"),), n=2, max_new_tokens=9, sampling_seed=7, stop=("def",))


def _with_client(server: Slow, work: Any) -> Any:
    async def run() -> Any:
        async with fleet_of(server) as (fleet, _):
            client = ContinuedClient(fleet, decode=decode, max_concurrency=4)
            return await asyncio.wait_for(work(fleet, client), 30.0)

    return asyncio.run(run())


@pytest.mark.parametrize("by_others", [True, False])
def test_an_aborted_completion_goes_on_from_its_tokens(by_others):
    server = Slow()

    async def work(fleet, client: ContinuedClient):
        await client.resume()
        answer = asyncio.ensure_future(client.generate(REQUEST))
        await server.until_asked(1)
        if by_others:  # as at the end of an over-sampled batch
            server.holds = False
            await abort_everything([fleet])
            return await answer
        await client.set_aside()
        assert client.num_calls == 0
        server.holds, server.version = False, "2-x"
        await asyncio.sleep(0.7)
        assert len(server.asked) == 1, "nothing is sent before the push has ended"
        await client.resume()
        return await answer

    completions = _with_client(server, work)
    # The server has not looked at the last token of a piece, so it is drawn again; both copies go on by themselves.
    assert [each[:3] for each in server.asked] == [(">", 2, 9), (">ab", 1, 7), (">ab", 1, 7)]
    seeds = [each[3] for each in server.asked]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    for each in completions:
        assert decode(each.token_ids) == "abcdef"
        assert (each.text, each.finish_reason, len(each.log_probs)) == ("abc", "stop", 6)
        spans = [(span.number, span.start, span.end) for span in each.version_spans]
        assert spans == ([(1, 0, 6)] if by_others else [(1, 0, 2), (2, 2, 6)])


def test_a_cancelled_caller_leaves_no_request_behind():
    server = Slow()

    async def work(_fleet, client: ContinuedClient):
        await client.resume()
        answer = asyncio.ensure_future(client.generate(REQUEST))
        await server.until_asked(1)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        await asyncio.sleep(0)
        return answer.cancelled(), client.num_calls

    assert _with_client(server, work) == (True, 0)


def test_a_refusal_is_raised():
    async def refuse(call: Call) -> Reply:
        if call.path == "/generate":
            return Reply({"error": {"message": "too long"}}, status=400)
        return Reply({"version": "0.5.23", "weight_version": "1"})

    async def run() -> Any:
        async with fleet_of(refuse) as (fleet, _):
            client = ContinuedClient(fleet, decode=decode, max_concurrency=4)
            await client.resume()
            return await client.generate(GenerateRequest(input_ids=(1,), n=1, max_new_tokens=2))

    with pytest.raises(RolloutError, match="too long"):
        asyncio.run(run())
