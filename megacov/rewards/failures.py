"""Counts the verifiers' failures over a batch, keeps their texts, and tells when there are too many."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from megacov.errors import RewardError
from megacov.rewards.call import Outcome
from megacov.rewards.pool import Judged
from megacov.types import Completion, Prompt

FILE_NAME = "verifier_failures.jsonl"
_LARGEST_FILE = 16 * 2**20
_LONGEST_TEXT = 20_000
_LONGEST_EXCERPT = 80


class FailureCount:
    """Failures of one batch. The first of each kind is printed.

    counts: number of failures by kind.
    """

    def __init__(self, folder: Path, *, step: int, num_expected: int, max_share: float) -> None:
        """Count nothing yet.

        Args:
            folder: run folder.
            step: step that trains on the batch, from 1.
            num_expected: responses of the batch, where none is dropped.
            max_share: largest share of failures that a batch may have.
        """
        self._path, self._step = folder / FILE_NAME, step
        self._num_expected, self._max_share = num_expected, max_share
        self.counts: Counter[str] = Counter()
        self._num_judged, self._wait_s, self._call_s = 0, 0.0, 0.0
        self._last = ""

    def add(self, name: str, prompt: Prompt, completion: Completion, judged: Judged) -> None:
        """Count a verdict, and keep its text if it is a failure.

        Args:
            name: name of the verifier.
            prompt: prompt of the response.
            completion: response that was judged.
            judged: outcome and times.

        Raises:
            RewardError: too many failures for a batch of the expected size, even if all others were judged. Responses
                to prompts that replace dropped groups count only once they are judged.
        """
        self._num_judged += 1
        self._wait_s += judged.wait_s
        self._call_s += judged.call_s
        outcome = judged.outcome
        if outcome.failure is None:
            return
        where = f"for the response {_excerpt(completion.text)} to a prompt with the answer {_excerpt(prompt.answer)}"
        self._last = f"{name} {outcome.reason} {where}"
        self.counts[outcome.failure] += 1
        self._keep(name, prompt, completion, outcome)
        self._check(max(self._num_expected, self._num_judged))
        if self.counts[outcome.failure] == 1:
            print(f"megacov: warning: step {self._step}: the verifier {self._last}, which scores 0.", flush=True)

    def finish(self) -> dict[str, float]:
        """End the batch.

        Returns:
            The mean times of a verdict.

        Raises:
            RewardError: too many of the judged responses are failures.
        """
        self._check(self._num_judged)
        num_judged = max(1, self._num_judged)
        return {
            "perf/verifier_wait_s": self._wait_s / num_judged,
            "perf/verifier_call_s": self._call_s / num_judged,
        }

    def _check(self, num_responses: int) -> None:
        if self.counts.total() <= self._max_share * num_responses:
            return
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.counts.most_common())
        raise RewardError(
            f"The verifier {self._last}; with it, {self.counts.total()} of the {num_responses} responses of step "
            f"{self._step} have no verdict ({kinds}), more than rewards.max_failed_share = {self._max_share:g} allows: "
            f"correct the verifier, or see {self._path}."
        )

    def _keep(self, name: str, prompt: Prompt, completion: Completion, outcome: Outcome) -> None:
        values = {
            "step": self._step,
            "verifier": name,
            "kind": outcome.failure,
            "reason": outcome.reason,
            "prompt": prompt.text[:_LONGEST_TEXT],
            "answer": prompt.answer[:_LONGEST_TEXT],
            "response": completion.text[:_LONGEST_TEXT],
        }
        line = json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            with self._path.open("ab") as file:
                if file.tell() + len(line) <= _LARGEST_FILE:
                    file.write(line)
        except OSError as error:
            if self.counts.total() == 1:
                print(f"megacov: {self._path} cannot be written: {error.strerror}.", flush=True)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_EXCERPT else text[: _LONGEST_EXCERPT - 3] + "...")
