"""Rank 0's part in rollouts: prompts, sampling, judging, and new weights for the servers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from megacov.config import RunConfig
from megacov.data import PromptDraw, load_tokenizer
from megacov.errors import LeaveRequested, RolloutError, WeightSyncError
from megacov.rollout import RolloutClient, SampledGroups, UnreachableError
from megacov.trainer.rollout.batches import make_batch
from megacov.trainer.rollout.checks import check_server, check_stop_tokens
from megacov.trainer.rollout.colocation import LentMemory
from megacov.trainer.rollout.curriculum import account_for, begin_curriculum
from megacov.trainer.rollout.evaluations import Evaluations, open_suite
from megacov.trainer.rollout.judging import Judge
from megacov.trainer.rollout.loop_thread import LoopThread
from megacov.trainer.rollout.metrics import metrics_of
from megacov.trainer.rollout.sample_writer import SampleWriter
from megacov.trainer.rollout.samplers import make_sampler
from megacov.trainer.rollout.servers import allow_open_files, find_keys, make_fleet, make_servers
from megacov.trainer.rollout.sources import read_sources
from megacov.trainer.state import RolloutState, TrainState
from megacov.types import RolloutBatch
from megacov.weight_sync import PushTimes, ServersFailedError, make_transport

_CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Collected:
    """A rollout batch, its metrics, the data position after it, and the rows that people see in RUN/samples."""

    batch: RolloutBatch
    metrics: dict[str, float]
    prompt_position: int
    shown: list[int]


@dataclass(frozen=True)
class _UnderWay:
    """A batch being sampled, and the fleet's counts before it."""

    sampling: Future[SampledGroups]
    draw: PromptDraw
    num_failovers: int
    num_restarts: int


class RolloutWorker:
    """Prompts, servers and verifier of a run. Their clients run on an event loop in a thread of its own.

    state: what the next batch continues from, after the last collected one.
    push_times: what the last push cost.
    samples: writes RUN/samples.
    """

    def __init__(
        self, config: RunConfig, folder: Path, *, vocab_size: int, on_group: Callable[[int], None] | None = None
    ) -> None:
        """Import the verifier and read all that the run reads. Nothing is written, and no server started.

        Args:
            config: the run's configuration.
            folder: run folder.
            vocab_size: rows of the model's embedding.
            on_group: called on another thread after each sampled group, with the number of groups so far in the batch.

        Raises:
            ConfigError: the verifier cannot be imported, or the keys are unusable.
            DataError: prompts or tokenizer do not fit the model.
            RolloutError: a server could not be started.
        """
        self._config, self._folder, self._vocab_size, self._on_group = config, folder, vocab_size, on_group
        self._is_interrupted = False
        # Servers report weights by this name, which no other run uses, nor an earlier start of this one.
        self._label = f"{{}}-{secrets.token_hex(4)}".format
        self.push_times = PushTimes()
        self._sampling: asyncio.Task[Any] | None = None
        self._under_way: _UnderWay | None = None
        check_stop_tokens(config.rollout.stop_token_ids, vocab_size=vocab_size)
        with ExitStack() as stack:
            # The loop starts before servers and verifiers, so that it ends after them.
            self._loop = stack.enter_context(LoopThread())
            self._judge = Judge(config, folder, self._loop, stack)
            tokenizer = load_tokenizer(config.model.path, vocab_size=vocab_size)
            self._decode = partial(tokenizer.decode, skip_special_tokens=True)
            self._judge.wait_ready()
            self._stream = read_sources(
                config,
                tokenizer,
                vocab_size=vocab_size,
                keep_rows=self._judge.wants_row,
                check_answers=self._judge.check_answers,
            )
            self._suite = open_suite(config, tokenizer, self._loop, stack, vocab_size=vocab_size)
            self._sources = [source.name for source in config.sources]
            self.samples = SampleWriter(config, folder, tokenizer)
            self.state = RolloutState(accuracies=begin_curriculum(config, num_prompts=self._stream.num_prompts))
            allow_open_files(config)
            self._keys = find_keys(config)
            self._servers = make_servers(config, folder, self._keys)
            self._stack = stack.pop_all()

    def start_servers(self) -> None:
        """Start the run's own servers, which write into the run folder; raises RolloutError."""
        for server in self._servers:
            self._stack.callback(server.stop)
            server.start()

    def wait_ready(self) -> None:
        """Wait until the servers generate, and connect to them. One of several running servers is enough.

        Raises:
            RolloutError: a started server, or every running one, did not generate in time, or one is unusable.
        """
        rollout = self._config.rollout
        deadline = time.monotonic() + rollout.start_timeout_s
        for server in self._servers:
            server.wait_ready(deadline)
        self._fleet = make_fleet(
            self._config,
            self._servers,
            self._keys,
            vocab_size=self._vocab_size,
            bring_up_to_date=self._bring_up_to_date if self._config.weight_sync.traits.keeps_copy else None,
            check=self._check,
        )
        self._members = self._fleet.membership
        self._stack.callback(self._disconnect)
        self._transport = make_transport(self._config, self._folder, self._members.receiving, run=self._loop.run)
        self._loop.run(self._members.wait_ready())
        self._memory = LentMemory(self._members.receiving) if rollout.colocated else None
        self._give_memory()
        self._evaluations = Evaluations(self._config, self._suite, self._members, self._loop, self._decode)
        self._sampler = make_sampler(self._config, self._fleet, self._judge.verify, self._decode)

    def push_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> str | None:
        """Push new weights to every server as one transaction. Servers that fail go out of service.

        No batch may be under way, since its samples must come from one version.

        Args:
            weights: pairs of Hugging Face name and tensor, taken one by one.
            version: version of the weights.

        Returns:
            None, or why the push must be repeated to the servers that are left.

        Raises:
            WeightSyncError: another push would not help.
        """
        assert self._under_way is None
        self._evaluations.make_way()
        self._members.versions.add(self._label(version))
        try:
            if self._memory is not None:
                self._loop.run(self._memory.take_weights())
            self.push_times = self._transport.push(version, weights, label=self._label(version))
            if self._memory is not None:
                self._loop.run(self._memory.take_everything_else())
        except ServersFailedError as error:
            if self._memory is not None:
                self._memory.forget(error.failures)
            if error.failures and not self._loop.run(self._members.drop_failed(error.failures)):
                raise WeightSyncError(str(error)) from error
            return str(error)
        self._loop.run(self._members.admit())
        self._evaluations.go_on(version)
        return None

    async def _bring_up_to_date(self, client: RolloutClient) -> None:
        await self._transport.bring_up_to_date(client)

    def begin(self, *, step: int, version: int, prompt_position: int) -> None:
        """Begin to sample and judge a rollout batch; returns at once.

        Args:
            step: step that will train on the batch, from 0.
            version: version of the servers' weights.
            prompt_position: data position of the batch's first prompt.
        """
        assert self._under_way is None
        run, rollout = self._config.run, self._config.rollout
        draw = PromptDraw(self._stream.moved_to(prompt_position), self.state.accuracies)
        self._judge.begin(step=step + 1)
        numbers, on_group = count(1), self._on_group
        sample = partial(
            self._sampler.sample_groups,
            draw,
            rollout.prompts_per_step,
            expected_version=self._label(version),
            trained_version=step,  # a step trains the weights whose version is the step's number
            carried=self.state.carried,
            # With a seed, SGLang gives all copies of a request the same tokens.
            seed=run.seed * 1_000_003 + step if rollout.engine == "embedded" else None,
            on_group=None if on_group is None else lambda: on_group(next(numbers)),
        )
        future = self._loop.start(self._interruptible(sample))
        self._under_way = _UnderWay(future, draw, self._fleet.num_failovers, self._members.num_restarts)

    def collect(self, state: TrainState) -> Collected:
        """Wait for the batch that was begun.

        Args:
            state: progress of the run.

        Returns:
            The batch, its metrics and the data position after it.

        Raises:
            RolloutError: the servers gave no full batch.
            RewardError: the verifier failed on too many responses.
            DataError: no completion holds a token.
            LeaveRequested: `interrupt` was called.
            ServersWaitError: all servers that are left need a push of the current weights.
        """
        assert self._under_way is not None
        begun, self._under_way = self._under_way, None
        groups = begun.sampling.result()
        used = begun.draw.first(groups.num_prompts)
        self.state, curriculum_metrics = account_for(groups, used, self.state)
        self._give_memory()
        batch = make_batch(self._config, groups)
        verifier_metrics = self._judge.finish()
        metrics = metrics_of(groups, self._config, version=state.weight_version, sources=self._sources) | {
            **verifier_metrics,
            **curriculum_metrics,
            **self.samples.metrics(),
            "rollout/failovers": self._fleet.num_failovers - begun.num_failovers,
            "rollout/servers": len(self._members.serving),
            "rollout/server_restarts": self._members.num_restarts - begun.num_restarts,
            **{f"perf/weight_sync_{name}": value for name, value in asdict(self.push_times).items()},
        }
        shown = self.samples.choose(groups.samples, version=state.weight_version)
        return Collected(batch, metrics, used.position, shown)

    def interrupt(self) -> None:
        """Give up the batch under way and every later one; `collect` then raises. For signal handlers."""
        self._is_interrupted = True
        if (sampling := self._sampling) is not None:  # read once: the loop's thread may reset it
            self._loop.cancel(sampling)

    async def _interruptible(self, sample: Callable[[], Coroutine[None, None, SampledGroups]]) -> SampledGroups:
        # Set the task before reading the flag: `interrupt` sets the flag before reading the task.
        self._sampling = asyncio.current_task()
        try:
            if self._is_interrupted:
                raise LeaveRequested("the rollout was interrupted.")
            return await self._members.watched(sample())
        except asyncio.CancelledError as error:
            raise LeaveRequested("the rollout was interrupted.") from error
        finally:
            self._sampling = None

    def finish_evaluations(self) -> None:
        """Wait for evaluations that are due, within their deadline, or until `interrupt`."""
        self._evaluations.finish(is_interrupted=lambda: self._is_interrupted)

    def close(self) -> None:
        """Give up pending work, close the connections and stop the servers. Safe to call again."""
        self._stack.close()

    def _disconnect(self) -> None:
        self._loop.cancel_all()
        with suppress(TimeoutError):
            self._loop.run(self._members.aclose(), timeout_s=_CLOSE_TIMEOUT_S)

    def _check(self, client: RolloutClient) -> None:
        check_server(self._config, client.capabilities, address=client.address, is_own=bool(self._servers))

    def _give_memory(self) -> None:
        """Have colocated servers free their memory for the trainer."""
        if self._memory is None:
            return
        try:
            self._loop.run(self._memory.give())
        except ServersFailedError as error:
            self._memory.forget(error.failures)
            # We can kill servers that we started; any other server that lives keeps the memory the trainer needs.
            is_freed = self._servers or all(isinstance(why, UnreachableError) for why in error.failures.values())
            if not is_freed or not self._loop.run(self._members.drop_failed(error.failures)):
                why = next(iter(error.failures.values()))
                raise RolloutError(f"A colocated server did not give its memory back: {why}") from error
        self._loop.run(self._members.release_lost())
