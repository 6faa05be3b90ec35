"""Many short requests to a fleet of embedded servers, one of which is killed every few seconds. Each is accounted for.

    python -m benchmarks.rollout_load [--requests 10000] [--servers 4] [--kill-every-s 5]

The fleet restarts a killed server and gives it the pushed weights, which differ from those that it starts with. Every
request has a prompt of its own. Exits with 1 unless each request was answered exactly once, with weights of the pushed
version. The version is checked twice: by the server's own statement, and by the log-probs of its tokens, which are
computed again from the prompt and these weights.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from megacov.rollout import EmbeddedServer, Fleet, GenerateRequest, Member, Membership, RolloutClient
from megacov.types import Completion
from megacov.weight_sync import DiskTransport
from tests.support.sglang_servers import MODEL, VOCAB_SIZE, changed_weights

VERSION = 1
PROMPT_LENGTH, MAX_NEW_TOKENS = 6, 4
START_TIMEOUT_S = 300.0
TOLERANCE = 1e-4  # of a log-prob; other weights and other prompts differ by more than this
_BATCH = 1000


@dataclass(frozen=True)
class Load:
    """Answers to each request, and the events meanwhile."""

    answers: list[list[Completion]]
    seconds: float
    kills: int
    restarts: int
    failovers: int
    retries: int


@contextmanager
def embedded_servers(number: int, folder: Path) -> Iterator[list[EmbeddedServer]]:
    """Start servers, and stop them at the end.

    Args:
        number: number of servers.
        folder: folder for their logs.

    Yields:
        The servers, ready to generate.
    """
    with ExitStack() as stack:
        servers = [
            EmbeddedServer(MODEL, log_path=folder / f"server_{each}.log", random_seed=each) for each in range(number)
        ]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        for server in servers:
            server.wait_ready(time.monotonic() + START_TIMEOUT_S)
        yield servers


def prompt_of(number: int) -> tuple[int, ...]:
    """The prompt of one request, which no other has: the digits of the request's number."""
    return tuple(number // VOCAB_SIZE**place % VOCAB_SIZE for place in range(PROMPT_LENGTH))


@dataclass
class Killer:
    """Ends one serving server after the other with SIGKILL.

    every_s: time between two kills. [s]
    most: total number of kills; None for no limit.
    kills: number of kills so far.
    """

    fleet: Fleet
    every_s: float
    most: int | None = None
    kills: int = 0

    async def work(self) -> None:
        """Kill until cancelled."""
        for member in cycle(self.fleet.membership.members):
            if self.kills == self.most:
                return
            pid = member.server.pid if member.server is not None and member.serves else None
            if pid is not None:
                await asyncio.sleep(self.every_s)
                if member.server is not None and member.server.pid == pid:
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
            await asyncio.sleep(0.01)


async def answer_all(fleet: Fleet, num_requests: int, *, concurrency: int) -> list[list[Completion]]:
    """Send every request once.

    Args:
        fleet: fleet of the servers.
        num_requests: total number of requests.
        concurrency: number of requests in flight at a time.

    Returns:
        All answers to each request.
    """
    answers: list[list[Completion]] = [[] for _ in range(num_requests)]
    numbers = iter(range(num_requests))

    async def ask() -> None:
        for number in numbers:
            request = GenerateRequest(input_ids=prompt_of(number), n=1, max_new_tokens=MAX_NEW_TOKENS)
            answers[number] += await fleet.generate(request)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(ask())
    return answers


def run_load(
    folder: Path,
    *,
    num_requests: int,
    num_servers: int,
    concurrency: int,
    kill_every_s: float,
    max_kills: int | None = None,
    watch_s: float = 2.0,
) -> Load:
    """Send requests while servers are killed.

    Args:
        folder: folder for logs and weights.
        num_requests: total number of requests.
        num_servers: number of servers, which are killed in turn.
        concurrency: number of requests in flight at a time.
        kill_every_s: time between two kills. [s]
        max_kills: total number of kills; None for no limit.
        watch_s: time between two looks at the servers. [s]

    Returns:
        Answers and events.
    """

    def make_client(address: str) -> RolloutClient:
        return RolloutClient(address, vocab_size=VOCAB_SIZE, request_timeout_s=60.0, max_connections=concurrency)

    async def killed_meanwhile() -> list[list[Completion]]:
        killing = asyncio.create_task(killer.work())
        try:
            return await fleet.membership.watched(answer_all(fleet, num_requests, concurrency=concurrency))
        finally:
            killing.cancel()

    async def bring_up_to_date(client: RolloutClient) -> None:
        await transport.bring_up_to_date(client)

    with embedded_servers(num_servers, folder) as servers, asyncio.Runner() as runner:
        fleet = Fleet(
            Membership(
                members=[Member(make_client(server.address), server) for server in servers],
                make_client=make_client,
                bring_up_to_date=bring_up_to_date,
                max_restarts=1000,
                start_timeout_s=START_TIMEOUT_S,
                watch_s=watch_s,
            )
        )
        transport = DiskTransport(
            fleet.membership.receiving, run=runner.run, source_model=MODEL, directory=folder / "weights"
        )
        fleet.membership.versions.add(str(VERSION))
        transport.push(VERSION, changed_weights(VERSION).items())
        killer = Killer(fleet, kill_every_s, max_kills)
        started = time.monotonic()
        answers = runner.run(killed_meanwhile())
        seconds = time.monotonic() - started
        runner.run(fleet.membership.aclose())
    return Load(answers, seconds, killer.kills, fleet.membership.num_restarts, fleet.num_failovers, fleet.num_retries)


def faults_of(answers: Sequence[Sequence[Completion]]) -> list[str]:
    """Account for every request.

    Args:
        answers: all answers to each request.

    Returns:
        A sentence for every request that was not answered exactly once with the pushed weights.
    """
    faults = [f"request {number}: {len(each)} answers" for number, each in enumerate(answers) if len(each) != 1]
    once = [(number, each[0]) for number, each in enumerate(answers) if len(each) == 1]
    for number, completion in once:
        versions = {span.version for span in completion.version_spans}
        if versions != {str(VERSION)} or completion.finish_reason == "abort" or not completion.token_ids:
            faults.append(f"request {number}: {completion.finish_reason} with weights of {sorted(versions)}")
    for first in range(0, len(once), _BATCH):
        some = once[first : first + _BATCH]
        for (number, completion), expected in zip(some, _log_probs(some), strict=True):
            found = torch.tensor(completion.log_probs, dtype=torch.float64)
            error = float((found - expected[: len(found)]).abs().max()) if len(found) else 0.0
            if not error < TOLERANCE:
                faults.append(f"request {number}: log-probs of other weights or another prompt, off by {error:g}")
    return faults


def _log_probs(some: Sequence[tuple[int, Completion]]) -> Tensor:
    """Log-probs [n, MAX_NEW_TOKENS] of the completions' tokens by transformers; arbitrary beyond a completion's end."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.load_state_dict(changed_weights(VERSION))
    tokens = torch.zeros(len(some), PROMPT_LENGTH + MAX_NEW_TOKENS, dtype=torch.long)
    for row, (number, completion) in zip(tokens, some, strict=True):
        whole = prompt_of(number) + completion.token_ids
        row[: len(whole)] = torch.tensor(whole)
    with torch.inference_mode():
        logits = model(tokens).logits[:, PROMPT_LENGTH - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, tokens[:, PROMPT_LENGTH:, None])[..., 0]


def main(
    requests: Annotated[int, typer.Option(min=1, max=VOCAB_SIZE**PROMPT_LENGTH, help="Requests in all.")] = 10_000,
    servers: Annotated[int, typer.Option(min=1, help="Embedded servers.")] = 4,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at a time.")] = 64,
    kill_every_s: Annotated[float, typer.Option(help="Seconds between two kills.")] = 5.0,
) -> None:
    """Run the load, account for every sample, and print the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="megacov-load-") as name:
        done = run_load(
            Path(name),
            num_requests=requests,
            num_servers=servers,
            concurrency=concurrency,
            kill_every_s=kill_every_s,
        )
    print(
        f"{requests} requests to {servers} servers in {done.seconds:.1f} s: {requests / done.seconds:.0f} requests/s, "
        f"{done.kills} kills, {done.restarts} restarts, {done.failovers} failovers, {done.retries} retries"
    )
    faults = faults_of(done.answers)
    print("\n".join(faults[:20]) or f"each of {requests} requests was answered once, with the pushed weights")
    sys.exit(bool(faults))


if __name__ == "__main__":
    typer.run(main)
