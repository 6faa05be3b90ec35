"""The penalty for long responses, DAPO's soft overlong punishment (arXiv 2503.14476, equation 13)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megacov.types import Sample

if TYPE_CHECKING:
    from megacov.config import RunConfig


@dataclass(frozen=True, slots=True)
class OverlongPenalty:
    """What is subtracted from the reward of a response that comes close to the limit.

    It grows linearly from 0, at `max_response_length - buffer` tokens, to `largest`, at `max_response_length`. The
    end-of-sequence token counts, as in verl's `reward_manager/dapo.py`.

    max_response_length: longest response. [tokens]
    buffer: tokens below it over which the penalty grows; 0 for no penalty.
    largest: penalty of the longest response. [reward]
    """

    max_response_length: int
    buffer: int
    largest: float

    @classmethod
    def of_run(cls, config: RunConfig) -> OverlongPenalty:
        """The penalty that a run's settings ask for."""
        rewards = config.rewards
        return cls(config.rollout.max_response_length, rewards.overlong_buffer, rewards.overlong_penalty)

    def of(self, num_tokens: int) -> float:
        """Penalty of a response with so many tokens, from 0 to `largest`."""
        if self.buffer == 0:
            return 0.0
        excess = num_tokens - (self.max_response_length - self.buffer)
        return self.largest * min(max(excess / self.buffer, 0.0), 1.0)

    def of_all(self, samples: Iterable[Sample]) -> list[float]:
        """Penalties of samples."""
        return [self.of(len(sample.completion.token_ids)) for sample in samples]
