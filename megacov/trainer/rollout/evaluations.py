"""Evaluations while a run trains: when one begins, and how it makes way for pushes of new weights.

An evaluation is sampled on the rollout servers, beside rollout batches and while the trainer trains. Before each push
it must have ended, or it is set aside: its requests are aborted, and go on from their tokens after the push. Nothing of
it reaches the training: it has requests, verifiers, seeds and files of its own, and its errors are printed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.errors import DataError, MegacovError
from megacov.evaluation.run_suite import RunSuite, RunSuiteSettings, find_problems, refuse_code
from megacov.evaluation.suite import find_suite, load_suite
from megacov.evaluation.tensorboard import write_scalars
from megacov.evaluation.verdicts import Verifiers
from megacov.rollout import ContinuedClient, DecodeTokens, Fleet, Membership
from megacov.trainer.rollout.loop_thread import LoopThread

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CLOSE_TIMEOUT_S = 3.0
_POLL_S = 0.2


def open_suite(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    loop: LoopThread,
    stack: ExitStack,
    *,
    vocab_size: int,
) -> RunSuite | None:
    """Start the verifiers of the run's evaluations, and read their problems. Nothing is written.

    Args:
        config: the run's configuration.
        tokenizer: tokenizer of the model.
        loop: thread on which evaluations run.
        stack: owner of the verifiers' processes from now on.
        vocab_size: rows of the model's embedding.

    Returns:
        The suite; None if the run evaluates nothing.

    Raises:
        ConfigError: the suite is unusable, or a verifier cannot be imported.
        DataError: a file, a problem or an answer is unusable.
        RewardError: the verifiers' processes cannot be started.
    """
    section, run = config.evaluation, config.run
    if section.suite is None:
        return None
    suite = load_suite(find_suite(section.suite))
    refuse_code(suite, allow_code=config.rewards.allow_code)
    found = find_problems(suite, section.data)
    log_path = run.directory / "logs" / "evaluation_verifier.log"
    verifiers = Verifiers(suite, [settings for settings, _ in found.sets], log_path=log_path, is_quiet=True)
    stack.enter_context(verifiers)
    stack.callback(_close, verifiers, loop)
    is_embedded = config.rollout.engine == "embedded"
    settings = RunSuiteSettings(
        run=run.directory,
        model=run.name,
        seed=run.seed,
        sends_seeds=is_embedded,
        max_concurrency=section.max_concurrency,
        stop_token_ids=config.rollout.stop_token_ids,
        servers={"engine": config.rollout.engine, "dtype": config.model.dtype, "deterministic": run.deterministic},
    )
    opened = RunSuite(suite, found, verifiers, settings)
    loop.run(opened.read(tokenizer, vocab_size=vocab_size))
    return opened


def _close(verifiers: Verifiers, loop: LoopThread) -> None:
    with suppress(TimeoutError):
        loop.run(verifiers.aclose(), timeout_s=_CLOSE_TIMEOUT_S)


class Evaluations:
    """The evaluations of a run, one at a time. Call it on the main thread; its work is done on the loop's."""

    def __init__(
        self, config: RunConfig, suite: RunSuite | None, members: Membership, loop: LoopThread, decode: DecodeTokens
    ) -> None:
        """Begin nothing yet.

        Args:
            config: the run's configuration.
            suite: what is evaluated; None for nothing, and then no call does anything.
            members: servers of the run.
            loop: thread on which evaluations run.
            decode: turns token ids into text without special tokens, as the servers do.
        """
        self._section, self._run_folder = config.evaluation, config.run.directory
        self._suite, self._members, self._loop = suite, members, loop
        # A fleet of its own, so that its failovers are not the rollout's.
        self._client = ContinuedClient(Fleet(members), decode=decode, max_concurrency=config.evaluation.max_concurrency)
        self._task: asyncio.Task[None] | None = None
        self._step = -1  # of the evaluation under way
        self._next: int | None = None  # due while another one is under way
        self._pushed_at: float | None = None
        self._num_failed = 0

    def make_way(self) -> None:
        """Wait for the evaluation under way, for the configured share of the last step at most, or set it aside."""
        if self._suite is not None and self._pushed_at is not None:
            last_step_s = time.monotonic() - self._pushed_at
            self._loop.run(self._make_way(self._section.max_wait_share * last_step_s))

    def go_on(self, version: int) -> None:
        """Go on with an evaluation that was set aside, or begin one if it is due.

        Args:
            version: version of the weights that all servers have now, which is the number of finished steps.
        """
        if self._suite is not None:
            self._loop.run(self._go_on(version, self._suite))
            self._pushed_at = time.monotonic()

    def finish(self, *, is_interrupted: Callable[[], bool]) -> None:
        """Wait for the end of what is due, `evaluation.timeout_s` at most. Servers are watched meanwhile.

        Args:
            is_interrupted: whether the run is asked to leave, which ends the wait.
        """
        if self._suite is None:
            return
        waiting = self._loop.start(self._members.watched(self._wait(self._section.timeout_s)))
        try:
            # No further push brings servers back that lost their weights.
            while not (waiting.done() or is_interrupted() or self._client.is_set_aside):
                wait({waiting}, timeout=_POLL_S)
            if waiting.done():
                waiting.result()
        except MegacovError as error:
            print(f"megacov: warning: no rollout server is left for the last evaluation: {error}", flush=True)
        finally:
            waiting.cancel()
        if self._task is not None and not self._task.done():
            print(
                f"megacov: warning: the evaluation of step {self._step} is not finished; {self._suite.folder} holds "
                "the problems that are.",
                flush=True,
            )

    async def _make_way(self, wait_s: float) -> None:
        await self._wait(wait_s)
        if self._task is not None and not self._task.done():
            if self._next is not None:
                print(
                    f"megacov: warning: the evaluation of step {self._next} is left out, since that of step "
                    f"{self._step} is still under way.",
                    flush=True,
                )
            self._next = None
        await self._client.set_aside()

    async def _wait(self, wait_s: float) -> None:
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=wait_s)

    async def _go_on(self, version: int, suite: RunSuite) -> None:
        cut: int | None = None
        if self._pushed_at is None:
            try:
                cut = suite.begin_after(version)
            except DataError as error:
                print(f"megacov: warning: {error}", flush=True)
        await self._client.resume()
        due = version if self._is_due(version, suite) else None
        if self._task is not None and not self._task.done():
            self._next = due if due != self._step else None
            return
        first, self._next = (due, None) if cut is None else (cut, due if due != cut else None)
        if first is not None:
            self._task = asyncio.create_task(self._evaluate(first, suite))

    def _is_due(self, version: int, suite: RunSuite) -> bool:
        is_its_turn = version % self._section.every == 0 and (version > 0 or self._section.at_start)
        return is_its_turn and not suite.is_done(version)

    async def _evaluate(self, step: int | None, suite: RunSuite) -> None:
        """Evaluate, and then what has become due meanwhile, as long as its weights are served."""
        while step is not None:
            self._step = step
            try:
                async with asyncio.timeout(self._section.timeout_s):
                    scores = await suite.evaluate(self._client, step)
            except TimeoutError:
                await self._note_failure(
                    step, f"it took longer than evaluation.timeout_s = {self._section.timeout_s:g} s"
                )
            except (MegacovError, OSError) as error:
                await self._note_failure(step, str(error))
            else:
                shown = ", ".join(f"{tag.removeprefix('eval/')} {value:.4g}" for tag, value in scores.items())
                print(f"megacov: evaluation of step {step}: {shown}", flush=True)
            step, self._next = self._next, None

    async def _note_failure(self, step: int, why: str) -> None:
        self._num_failed += 1
        print(f"megacov: warning: the evaluation of step {step} has failed, and training goes on: {why}", flush=True)
        write = partial(write_scalars, self._run_folder, {"eval/failed": float(self._num_failed)}, step=step)
        with suppress(DataError):  # the folder may be what has failed
            await asyncio.to_thread(write)
