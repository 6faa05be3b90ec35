"""Where a run stands: everything that moves from step to step, apart from weights and optimizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainState:
    """Equal on every rank.

    step: rollout batches trained on so far.
    update: optimizer steps so far, those left out included.
    skipped_in_a_row: optimizer steps left out since the last one that was made, because their gradient was not finite.
    prompt_position: prompts taken from the data so far, over all epochs.
    """

    step: int = 0
    update: int = 0
    skipped_in_a_row: int = 0
    prompt_position: int = 0

    @property
    def weight_version(self) -> int:
        """Version under which the current weights are given to the rollout servers: one a step."""
        return self.step

    def advance(self, *, num_updates: int) -> None:
        """Count a finished step.

        Args:
            num_updates: optimizer steps it made.
        """
        self.step += 1
        self.update += num_updates
