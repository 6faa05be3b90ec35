"""When evaluations of a run begin, make way and end; on a scripted server, with real verifiers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.config import RunConfig, load_config
from megacov.data import load_tokenizer
from megacov.errors import ConfigError, DataError
from megacov.evaluation.tensorboard import FOLDER
from megacov.rollout import Membership
from megacov.trainer.rollout.evaluations import Evaluations, open_suite
from megacov.trainer.rollout.loop_thread import LoopThread
from tests.support.policies import TINY_POLICY
from tests.support.scripted_fleet import fleet_of
from tests.support.scripted_server import Call, Reply, completion

TINY = "yaml_configs/runs/tiny_kl_cov.yaml"
VOCAB_SIZE = 32
SET = {
    "name": "few",
    "path": "problems.jsonl",
    "prompt_field": "prompt",
    "chat_template": False,
    "verifier": "sum_pairs",
    "samples": 1,
    "max_response_length": 8,
    "extract": "text",
}


class Server:
    """Answers with one token and the weights of `version`; a held prompt is answered only if it is aborted.

    prompts: of the requests, in order.
    """

    def __init__(self) -> None:
        self.version, self.is_held, self.refuses = 0, False, False
        self.first_is_free = False
        self.prompts: list[tuple[int, ...]] = []
        self._held: list[asyncio.Event] = []

    async def __call__(self, call: Call) -> Reply:
        if call.path == "/abort_request":
            for each in self._held:
                each.set()
            return Reply()
        if call.path != "/generate":
            return Reply({"version": "0.5.23", "weight_version": f"{self.version}-x"})
        if self.refuses:
            return Reply({"error": {"message": "too long for me"}}, status=400)
        self.prompts.append(tuple(call.body["input_ids"]))
        version = f"{self.version}-x"
        if self.is_held and not (self.first_is_free and len(self.prompts) == 1):
            self._held.append(asyncio.Event())
            await self._held[-1].wait()
            return Reply(completion([5, 6], finish="abort", version=version))
        return Reply(completion([7], text="1", version=version))


@contextmanager
def _members_of(server: Server, loop: LoopThread) -> Iterator[Membership]:
    """The scripted server, on the loop's thread."""

    @asynccontextmanager
    async def opened():
        async with fleet_of(server) as (fleet, _):
            yield fleet.membership

    context = opened()
    members = loop.run(context.__aenter__())
    try:
        yield members
    finally:
        loop.run(context.__aexit__(None, None, None))


class Rig:
    """Evaluations of a run in a folder, with everything they need; a context."""

    def __init__(self, folder: Path, server: Server, **settings: object) -> None:
        rows = Path("examples/sum_pairs/prompts.jsonl").read_text().splitlines()[:3]
        folder.mkdir(exist_ok=True)
        (folder / "problems.jsonl").write_text("\n".join(rows))
        (folder / "suite.yaml").write_text(json.dumps({"name": "small", "workers": 1, "sets": [SET]}))
        values = {"suite": f"{folder}/suite.yaml", "data": str(folder), "every": 2, "max_wait_share": 0.0} | settings
        self.config = load_config(TINY, [f"run.directory={folder}/run", f"evaluation={json.dumps(values)}"])
        self.folder, self._server, self._stack = folder / "run", server, ExitStack()

    def __enter__(self) -> Evaluations:
        loop = self._stack.enter_context(LoopThread())
        members = self._stack.enter_context(_members_of(self._server, loop))
        self._stack.callback(loop.cancel_all)
        suite = open_of(self.config, loop, self._stack)
        return Evaluations(self.config, suite, members, loop, lambda ids: "1" * len(ids))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def results(self) -> list[str]:
        """Names of the results so far."""
        return sorted(path.name for path in (self.folder / "evaluations").glob("step_*.json"))

    def set_of(self, step: int) -> dict:
        return json.loads((self.folder / "evaluations" / f"step_{step}.json").read_text())["sets"]["few"]


def open_of(config: RunConfig, loop: LoopThread, stack: ExitStack):
    tokenizer = load_tokenizer(TINY_POLICY, vocab_size=VOCAB_SIZE)
    return open_suite(config, tokenizer, loop, stack, vocab_size=VOCAB_SIZE)


def never() -> bool:
    return False


def push(evaluations: Evaluations, server: Server, version: int) -> None:
    """A push of the weights of a version, as the worker does it."""
    evaluations.make_way()
    server.version = version
    evaluations.go_on(version)


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def printed_until(words: str, capsys) -> str:
    """All that is printed until the words are."""
    parts: list[str] = []

    def has_words() -> bool:
        parts.append(capsys.readouterr().out)
        return words in "".join(parts)

    until(has_words)
    return "".join(parts)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_it_makes_way_and_goes_on_and_the_report_says_so(tmp_path, capsys):
    server = Server()
    rig = Rig(tmp_path, server)
    with rig as evaluations:
        push(evaluations, server, 0)
        push(evaluations, server, 1)
        assert server.prompts == [], "neither the start nor step 1 is due"
        server.is_held = True
        push(evaluations, server, 2)
        until(lambda: len(server.prompts) == 3)
        push(evaluations, server, 3)
        until(lambda: len(server.prompts) == 6)
        assert all(prompt[-1] == 5 for prompt in server.prompts[3:]), "it goes on from its tokens"
        push(evaluations, server, 4)  # is due while step 2 is under way
        until(lambda: len(server.prompts) == 9)
        server.is_held = False
        push(evaluations, server, 5)
        evaluations.finish(is_interrupted=never)
        assert rig.results() == ["step_2.json"]
        push(evaluations, server, 6)
        evaluations.finish(is_interrupted=never)
        push(evaluations, server, 6)  # again, as after all servers were lost
        evaluations.finish(is_interrupted=never)
    assert len(server.prompts) == 15
    assert rig.set_of(2)["weight_versions"] == [2, 5]
    assert rig.set_of(6)["weight_versions"] == [6, 6]
    assert scalars(rig.folder, "eval/few/version_lag_max") == [(2, 3.0), (6, 0.0)]
    printed = capsys.readouterr().out
    assert printed.count("the evaluation of step 4 is left out, since that of step 2 is still under way") == 1
    assert "evaluation of step 6: few/avg@1 0," in printed


def test_what_is_due_at_the_end_is_finished_one_after_the_other(tmp_path):
    server = Server()
    rig = Rig(tmp_path, server)
    with rig as evaluations:
        server.is_held = True
        push(evaluations, server, 2)
        until(lambda: len(server.prompts) == 3)
        server.is_held = False
        push(evaluations, server, 4)
        evaluations.finish(is_interrupted=never)
    assert rig.results() == ["step_2.json", "step_4.json"]


def test_a_step_waits_for_its_share_only(tmp_path, capsys):
    server = Server()
    with Rig(tmp_path, server, max_wait_share=0.5, timeout_s=30.0) as evaluations:
        server.is_held = True
        push(evaluations, server, 2)
        until(lambda: len(server.prompts) == 3)
        time.sleep(1.0)
        began = time.monotonic()
        evaluations.make_way()
        assert 0.4 < time.monotonic() - began < 5.0
        began = time.monotonic()
        evaluations.finish(is_interrupted=lambda: True)
        assert time.monotonic() - began < 5.0
    assert "the evaluation of step 2 is not finished" in capsys.readouterr().out


def test_a_failure_is_printed_and_counted_and_the_next_one_works(tmp_path, capsys):
    server = Server()
    rig = Rig(tmp_path, server, timeout_s=1.0)
    with rig as evaluations:
        server.refuses = True
        push(evaluations, server, 2)
        evaluations.finish(is_interrupted=never)
        server.refuses, server.is_held = False, True
        push(evaluations, server, 4)
        printed = printed_until("took longer", capsys)
        server.is_held = False
        push(evaluations, server, 6)
        evaluations.finish(is_interrupted=never)
    assert "evaluation of step 2 has failed, and training goes on:" in printed
    assert "too long for me" in printed
    assert "evaluation.timeout_s = 1 s" in printed
    assert rig.results() == ["step_6.json"]
    assert scalars(rig.folder, "eval/failed") == [(2, 1.0), (4, 2.0)]


def test_a_resumed_run_goes_on_with_what_was_cut_and_forgets_later_steps(tmp_path):
    server = Server()
    server.is_held = server.first_is_free = True
    rig = Rig(tmp_path, server)
    records = rig.folder / "evaluations" / "step_2.responses.jsonl"
    with rig as evaluations:
        push(evaluations, server, 2)
        until(lambda: records.exists() and len(records.read_bytes().splitlines()) == 2)
    finished = records.read_bytes()
    for name in ("step_4.json", "step_4.responses.jsonl"):
        (records.parent / name).write_text("of weights that are gone")
    again = Server()
    rig = Rig(tmp_path, again)
    with rig as evaluations:
        push(evaluations, again, 3)
        evaluations.finish(is_interrupted=never)
        assert rig.results() == ["step_2.json"]
        assert not (records.parent / "step_4.responses.jsonl").exists()
    assert len(again.prompts) == 2, "the finished problem is not sampled again"
    assert records.read_bytes().startswith(finished)
    assert rig.set_of(2)["weight_versions"] == [2, 3]
    # A third start finds it done, and step 2 is not evaluated again.
    third = Server()
    with Rig(tmp_path, third) as evaluations:
        push(evaluations, third, 2)
        evaluations.finish(is_interrupted=never)
    assert third.prompts == []


def test_another_suite_begins_a_cut_evaluation_anew(tmp_path):
    server = Server()
    server.is_held = server.first_is_free = True
    rig = Rig(tmp_path, server)
    records = rig.folder / "evaluations" / "step_2.responses.jsonl"
    with rig as evaluations:
        push(evaluations, server, 2)
        until(lambda: records.exists() and len(records.read_bytes().splitlines()) == 2)
    again = Server()
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SET, "max_response_length", 7)
        rig = Rig(tmp_path, again)
    with rig as evaluations:
        push(evaluations, again, 2)
        evaluations.finish(is_interrupted=never)
    assert len(again.prompts) == 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"path": "nowhere.jsonl"}, DataError, "since neither evaluation.data nor MEGACOV_DATA|neither in"),
        ({"verifier": "code"}, ConfigError, "the verifier of the set few of evaluation.suite is code"),
        ({"verifier": "nowhere:judge"}, ConfigError, "nowhere"),
    ],
)
def test_a_suite_that_cannot_work_is_refused_at_the_start(tmp_path, changes, error, words):
    with pytest.MonkeyPatch.context() as patched:
        for name, value in changes.items():
            patched.setitem(SET, name, value)
        rig = Rig(tmp_path, Server())
    with LoopThread() as loop, ExitStack() as stack, pytest.raises(error, match=words):
        open_of(rig.config, loop, stack)
