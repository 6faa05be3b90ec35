"""What rank 0 does for all: prompts, sampling, judging, and new weights for the servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacov.config import RunConfig
from megacov.data import PromptStream, load_prompts, load_tokenizer
from megacov.data.packing import build_rollout_batch
from megacov.errors import LeaveRequested, WeightSyncError
from megacov.monitor.metrics import entropy_before_filter, reward_metrics, rollout_metrics, version_lag
from megacov.rewards import get_verifier
from megacov.rollout import RolloutClient, SampledGroups, Sampler, refuse_unsafe, version_warning
from megacov.trainer.rollout_servers import find_keys, make_fleet, make_servers
from megacov.trainer.run_folder import write_samples
from megacov.trainer.state import TrainState
from megacov.trainer.weight_transport import make_transport
from megacov.types import Prompt, RolloutBatch
from megacov.weight_sync import DiskTransport, PushTimes, ServersFailedError


@dataclass(frozen=True)
class Collected:
    """A rollout batch with its metrics, and the data position after it."""

    batch: RolloutBatch
    metrics: dict[str, float]
    prompt_position: int


class RolloutWorker:
    """Prompts, servers and verifier of a run. It owns an event loop, on which its clients live."""

    def __init__(
        self, config: RunConfig, folder: Path, *, vocab_size: int, on_group: Callable[[], None] | None = None
    ) -> None:
        """Read the data and start the servers that the run has for itself; `wait_ready` waits for them.

        Args:
            config: of the run.
            folder: of the run.
            vocab_size: rows of the model's embedding.
            on_group: called after each sampled group.

        Raises:
            ConfigError: an unknown verifier, or keys that cannot be used.
            DataError: prompts or tokenizer do not fit.
            RolloutError: a server cannot be started.
        """
        self._config, self._folder, self._vocab_size, self._on_group = config, folder, vocab_size, on_group
        self._stack = ExitStack()
        self._is_interrupted = False
        self.push_times = PushTimes()
        self._sampling: asyncio.Task[SampledGroups] | None = None
        self._verify = get_verifier(config.rewards.verifier)
        tokenizer = load_tokenizer(config.model.path, vocab_size=vocab_size)
        self._prompts = load_prompts(
            config.data.path,
            tokenizer,
            vocab_size=vocab_size,
            prompt_field=config.data.prompt_field,
            answer_field=config.data.answer_field,
            chat_template=config.data.chat_template,
            max_prompt_length=config.data.max_prompt_length,
        )
        self._keys = find_keys(config)
        self._servers = make_servers(config, folder, self._keys)
        for server in self._servers:
            self._stack.callback(server.stop)
            server.start()

    def wait_ready(self) -> None:
        """Wait until every server generates, and connect to it.

        Raises:
            RolloutError: one did not within its deadline, or ended, or is of a version that must not be used.
        """
        rollout = self._config.rollout
        deadline = time.monotonic() + rollout.start_timeout_s
        for server in self._servers:
            server.wait_ready(deadline)
        self._runner = self._stack.enter_context(asyncio.Runner())
        self._runner.get_loop().set_exception_handler(_report_unless_leaving)
        self._fleet = make_fleet(
            self._config,
            self._servers,
            self._keys,
            vocab_size=self._vocab_size,
            bring_up_to_date=self._bring_up_to_date if self._config.weight_sync.transport == "disk" else None,
        )
        self._stack.callback(lambda: self._runner.run(self._fleet.aclose()))
        for client in self._fleet.receiving:
            self._runner.run(client.wait_healthy(rollout.start_timeout_s))
            self._check_version(self._runner.run(client.learn_capabilities()).version, client.address)
        self._sampler = self._make_sampler()
        self._transport = make_transport(self._config, self._folder, self._fleet.receiving, run=self._runner.run)

    def push_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> str | None:
        """Give new weights to every server, as one transaction. Servers that fail are out of service from then on.

        Args:
            weights: (Hugging Face name, tensor); taken one by one.
            version: their name.

        Returns:
            None, or why they must be pushed again, to the servers that are left.

        Raises:
            WeightSyncError: another push would not help.
        """
        self._fleet.versions.add(str(version))
        try:
            self.push_times = self._transport.push(version, weights)
        except ServersFailedError as error:
            if error.failures and not self._runner.run(self._fleet.drop_failed(error.failures)):
                raise WeightSyncError(str(error)) from error
            return str(error)
        self._runner.run(self._fleet.admit())
        return None

    async def _bring_up_to_date(self, client: RolloutClient) -> None:
        assert isinstance(self._transport, DiskTransport)
        self._check_version(client.capabilities.version, client.address)
        await self._transport.bring_up_to_date(client)

    def collect(self, state: TrainState) -> Collected:
        """Sample and judge one rollout batch.

        Args:
            state: where the run stands.

        Returns:
            The batch, its metrics and the data position after it.

        Raises:
            RolloutError: no full batch could be had.
            RewardError: a reward is not a finite number.
            DataError: no completion holds a token.
            LeaveRequested: `interrupt` was called.
        """
        run, rollout = self._config.run, self._config.rollout
        stream = PromptStream(
            self._prompts, seed=run.seed, shuffle=self._config.data.shuffle, position=state.prompt_position
        )
        sampling = self._sampler.sample_groups(
            _one_by_one(stream),
            rollout.prompts_per_step,
            expected_version=str(state.weight_version),
            # SGLang gives all copies of a request with a seed the same tokens.
            seed=run.seed * 1_000_003 + state.step if rollout.engine == "embedded" else None,
            on_group=self._on_group,
        )
        fleet, before = self._fleet, (self._fleet.num_failovers, self._fleet.num_restarts)
        groups = self._runner.run(self._interruptible(fleet.watched(sampling)))
        batch = build_rollout_batch(groups.samples, max_response_length=rollout.max_response_length)
        write_samples(self._folder, groups.samples[: self._config.monitor.samples_per_step], step=state.step + 1)
        metrics = _metrics(groups, state.weight_version) | {
            "rollout/failovers": fleet.num_failovers - before[0],
            "rollout/servers": len(fleet.serving),
            "rollout/server_restarts": fleet.num_restarts - before[1],
        }
        return Collected(batch, metrics, stream.position)

    def interrupt(self) -> None:
        """Have this and every later `collect` give up. For signal handlers, in the thread that collects."""
        self._is_interrupted = True
        if self._sampling is not None:
            # Wakes the event loop, which a signal handler alone would not.
            self._runner.get_loop().call_soon_threadsafe(self._sampling.cancel)

    async def _interruptible(self, sampling: Coroutine[None, None, SampledGroups]) -> SampledGroups:
        self._sampling = asyncio.ensure_future(sampling)
        try:
            if self._is_interrupted:
                self._sampling.cancel()
            return await self._sampling
        except asyncio.CancelledError as error:
            raise LeaveRequested("the rollout was interrupted.") from error
        finally:
            self._sampling = None

    def close(self) -> None:
        """Close the connections and end the servers. Safe to call again."""
        self._stack.close()

    def _check_version(self, version: str, address: str) -> None:
        if self._servers:
            refuse_unsafe(version, server=address)
        warning = version_warning(version, server=address)
        if warning is not None:
            print(f"megacov: {warning}", flush=True)

    def _make_sampler(self) -> Sampler:
        rollout = self._config.rollout
        return Sampler(
            clients=[self._fleet],
            verify=self._verify,
            samples_per_prompt=rollout.samples_per_prompt,
            max_response_length=rollout.max_response_length,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            stop=rollout.stop,
            max_concurrency=rollout.max_concurrency,
            filter_groups=rollout.filter_groups,
            max_filter_rounds=rollout.max_filter_rounds,
        )


def _report_unless_leaving(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A signal that ends the run may be raised inside any task; that is no failure of the task."""
    if not isinstance(context.get("exception"), SystemExit):
        loop.default_exception_handler(context)


def _one_by_one(stream: PromptStream) -> Iterator[Prompt]:
    """Prompts of a stream, each taken only when it is asked for, so that the stream's position stays true."""
    while True:
        yield from stream.take(1)


def _metrics(groups: SampledGroups, version: int) -> dict[str, float]:
    """Of everything sampled and judged, dropped groups included, unless a tag says otherwise."""
    report, sampled = groups.report, [*groups.samples, *groups.dropped]
    rewards = torch.tensor([sample.reward for sample in sampled], dtype=torch.float64)
    return {
        **reward_metrics(rewards, torch.tensor([sample.group for sample in sampled])),
        **rollout_metrics(groups.samples),
        **entropy_before_filter(sampled),
        **version_lag(groups.samples, version=version),
        "rollout/retries": report.retries,
        "rollout/dropped_groups": report.dropped_groups,
        "rollout/refill_rounds": report.refill_rounds,
        "rollout/aborted": report.aborted,
        "rollout/wrong_version": report.wrong_version,
        "rollout/empty": report.empty,
    }
