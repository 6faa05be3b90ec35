"""Samples and judges the responses to the problems of one set.

The server, the judge and the event loop belong to the caller, so that `megacov evaluate` and a training run share this.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from megacov.config.suite import EvaluationSet
from megacov.errors import RolloutError
from megacov.evaluation.extraction import extract_answer
from megacov.evaluation.records import Answered, Response
from megacov.rollout import GenerateRequest, Prefix, RequestRefusedError
from megacov.rollout.tasks import gather_all
from megacov.types import Completion, Prompt, Verdict

Judge = Callable[[Prompt, Completion], Awaitable[Verdict]]
"""Awaited for each response; a failure of the verifier is a verdict with reward 0."""

_MAX_RESAMPLES = 3
_MAX_SEED = 2**31


class Generates(Protocol):
    """A fleet, or the client of one server."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Sample n completions of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the problems of one set are sampled.

    settings: the set's settings.
    seed: of the evaluation. With a server that follows seeds of requests, the responses to a problem are a function of
        this seed, the name of the set and the place of the problem, whatever else is sampled. None sends no seeds.
    max_concurrency: largest number of requests in flight.
    expected_version: weight version of every token; responses of other weights are sampled again. None takes any.
    stop_token_ids: token ids that end a response, in addition to the model's own.
    notes_versions: whether responses keep the versions of the weights that sampled them, which must then be numbers.
    """

    settings: EvaluationSet
    seed: int | None
    max_concurrency: int
    expected_version: str | None = None
    stop_token_ids: tuple[int, ...] = ()
    notes_versions: bool = False


async def sample_problems(
    client: Generates,
    judge: Judge,
    problems: Sequence[Prompt],
    sampling: Sampling,
    *,
    on_answered: Callable[[Answered], None] | None = None,
) -> list[Answered]:
    """Sample and judge all responses to some problems of a set. A response that the length limit cut is not judged.

    Args:
        client: fleet, or the client of one server.
        judge: judges a response.
        problems: problems of the set.
        sampling: how they are sampled.
        on_answered: called with each problem as soon as all of its responses are judged, in no fixed order.

    Returns:
        The problems with their responses, in the order in which they were given.

    Raises:
        RolloutError: the servers gave no full set of responses.
        RewardError: the verifier's processes cannot be started again.
        DataError: a prompt has a token outside the vocabulary, or `on_answered` raised it.
    """
    slots = asyncio.Semaphore(sampling.max_concurrency)

    async def answer(problem: Prompt) -> Answered:
        async with slots:
            completions = await _complete(client, problem, sampling)
        responses = await gather_all(_respond(judge, problem, each, sampling) for each in completions)
        answered = Answered(sampling.settings.name, problem.index, problem_digest(problem), tuple(responses))
        if on_answered is not None:
            on_answered(answered)
        return answered

    return await gather_all(answer(problem) for problem in problems)


def problem_digest(problem: Prompt) -> str:
    """The first half of the SHA-256 of a problem's tokens, answer and row, as hexadecimal digits.

    The row counts where the verifier asks for it, since it may then hold tests or other parts of the answer.
    """
    row = "" if problem.row is None else json.dumps(problem.row, sort_keys=True)
    content = f"{' '.join(map(str, problem.token_ids))}\n{problem.answer}\n{row}"
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:32]


def problems_digest(problems: Sequence[Prompt]) -> str:
    """One digest of all problems, in their order."""
    return hashlib.sha256("\n".join(map(problem_digest, problems)).encode()).hexdigest()[:32]


def request_seed(seed: int, set_name: str, index: int, attempt: int = 0) -> int:
    """Seed of the request for one problem, from 0 to 2**31 - 1."""
    digest = hashlib.sha256(f"{seed}/{set_name}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % _MAX_SEED


async def _complete(client: Generates, problem: Prompt, sampling: Sampling) -> list[Completion]:
    """All completions of a problem; those that were aborted or come from other weights are sampled again."""
    settings, prefix = sampling.settings, Prefix()
    completions: list[Completion] = []
    for attempt in range(_MAX_RESAMPLES + 1):
        request = GenerateRequest(
            input_ids=problem.token_ids,
            n=settings.samples - len(completions),
            max_new_tokens=settings.max_response_length,
            temperature=settings.sampling_temperature,
            top_p=settings.top_p,
            stop=settings.stop,
            stop_token_ids=sampling.stop_token_ids,
            sampling_seed=None
            if sampling.seed is None
            else request_seed(sampling.seed, settings.name, problem.index, attempt),
            prefix=prefix,
        )
        try:
            sampled = await client.generate(request)
        except RequestRefusedError as error:
            raise RolloutError(
                f"the set {settings.name}, with max_response_length {settings.max_response_length} and a problem of "
                f"{len(problem.token_ids)} tokens: {error}"
            ) from error
        completions += [each for each in sampled if _is_usable(each, sampling)]
        if len(completions) == settings.samples:
            return completions
    raise RolloutError(
        f"{settings.samples - len(completions)} responses to problem {problem.index} of {settings.name} were aborted "
        f"or came from other weights than {sampling.expected_version or 'one version'}, after {_MAX_RESAMPLES + 1} "
        "attempts: see that nothing else pauses or updates the rollout servers."
    )


def _is_usable(completion: Completion, sampling: Sampling) -> bool:
    if completion.finish_reason == "abort":
        return False
    versions = {span.version for span in completion.version_spans}
    return sampling.expected_version is None or versions <= {sampling.expected_version}


async def _respond(judge: Judge, problem: Prompt, completion: Completion, sampling: Sampling) -> Response:
    is_cut = completion.finish_reason == "length"
    verdict = Verdict(0.0) if is_cut else await judge(problem, completion)
    versions = sorted(span.number for span in completion.version_spans) if sampling.notes_versions else []
    return Response(
        text=completion.text,
        reward=verdict.reward,
        failure=verdict.failure,
        finish_reason=completion.finish_reason,
        num_tokens=len(completion.token_ids),
        log_prob=sum(completion.log_probs),
        answer=None if is_cut else extract_answer(completion.text, sampling.settings.extract),
        versions=(versions[0], versions[-1]) if versions else None,
    )
