"""The verdicts of a run: a pool of processes with its verifiers, and the failures of each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from megacov.config import RunConfig
from megacov.rewards.answers import AnswerCheck
from megacov.rewards.failures import FailureCount
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings, Ready
from megacov.rewards.settings import verifiers_of
from megacov.rollout.fleet.server_process import environment_without_rank
from megacov.trainer.rollout.loop_thread import LoopThread
from megacov.types import Completion, Prompt, Verdict

_CLOSE_TIMEOUT_S = 3.0


class Judge:
    """Judges responses on the event loop of a thread, and counts the verifiers' failures batch by batch."""

    def __init__(self, config: RunConfig, folder: Path, loop: LoopThread, stack: ExitStack) -> None:
        """Start the verifiers' processes; `wait_ready` waits for the first.

        They print into a log in the run folder, but only from the first verdict on: before, that folder may be an
        earlier run's.

        Args:
            config: the run's configuration.
            folder: run folder, which may not exist yet.
            loop: thread on which verdicts are awaited.
            stack: owner of the processes from now on; it ends them before the thread.
        """
        rewards = config.rewards
        self._folder, self._loop, self._rewards = folder, loop, rewards
        self._verifiers = verifiers_of(config)
        settings = ProcessSettings(
            verifiers=self._verifiers.settings,
            log_path=folder / "logs" / "verifier.log",
            environment=environment_without_rank(),
        )
        self._pool = VerifierPool(
            settings,
            num_workers=rewards.workers,
            timeout_s=rewards.timeout_s,
            start_timeout_s=rewards.start_timeout_s,
        )
        self._ready: tuple[Ready, ...] = ()
        self._num_expected = config.sequences_per_step
        stack.callback(self._close)
        self._pool.start(is_quiet=True)

    def wait_ready(self) -> None:
        """Wait until the verifiers are imported; raises ConfigError if one cannot be."""
        self._ready = self._pool.wait_for_first()

    def check_answers(self, prompts: Iterable[Prompt], place_of: Callable[[int], str]) -> None:
        """Look whether the verifiers can judge against the answers of the prompts.

        Args:
            prompts: prompts of the run, read one by one.
            place_of: file and line of a prompt, by its index.

        Raises:
            DataError: they cannot, or have not looked at all answers in time.
            RewardError: the verifiers' processes cannot be started again.
        """
        check = AnswerCheck(
            self._pool,
            self._verifiers.settings,
            self._ready,
            self._verifiers.of_source,
            num_workers=self._rewards.workers,
            timeout_s=self._rewards.start_timeout_s,
        )
        self._loop.run(check.check(prompts, place_of))

    @property
    def wants_row(self) -> bool:
        """Whether a verifier asks for the row of the data."""
        return any("row" in each.wanted for each in self._ready)

    def begin(self, *, step: int) -> None:
        """Begin to count the failures of a batch, which step `step` trains on, from 1."""
        self._failures = FailureCount(
            self._folder,
            step=step,
            num_expected=self._num_expected,
            max_share=self._rewards.max_failed_share,
        )

    async def verify(self, prompt: Prompt, completion: Completion) -> Verdict:
        """Judge a response; several at once.

        Args:
            prompt: prompt of the response.
            completion: response with its text.

        Returns:
            Its reward, 0 for a failure.

        Raises:
            RewardError: the verifier failed on too many responses, or its processes cannot be started again.
        """
        values = {
            "text": completion.text,
            "answer": prompt.answer,
            "prompt": prompt.text,
            "row": prompt.row,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.token_ids),
        }
        place = self._verifiers.of_source[prompt.source]
        wanted = {name: values[name] for name in self._ready[place].wanted}
        judged = await self._pool.judge(wanted, verifier=place)
        self._failures.add(self._verifiers.settings[place].name, prompt, completion, judged)
        return Verdict(judged.outcome.reward, judged.outcome.failure)

    def finish(self) -> dict[str, float]:
        """Mean times of the batch's verdicts; raises RewardError if too many of them are failures."""
        return self._failures.finish()

    def _close(self) -> None:
        with suppress(TimeoutError):
            self._loop.run(self._pool.aclose(), timeout_s=_CLOSE_TIMEOUT_S)
        self._pool.close()
