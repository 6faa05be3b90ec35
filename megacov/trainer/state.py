"""The state of a run that changes from step to step, except weights and optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from megacov.data.curriculum import PromptAccuracies
from megacov.plan.control import ControlState
from megacov.rollout import CarriedGroup


@dataclass
class TrainState:
    """State of a run, equal on all ranks.

    step: number of rollout batches trained on.
    update: number of optimizer steps, including those left out.
    skipped_in_a_row: number of optimizer steps left out since the last applied one, for a gradient that was not finite.
    prompt_position: number of prompts taken from the data, over all epochs.
    control: state of the controller; None before its first step.
    controlled_by: name of the controller whose state that is, and of the setting that it sets.
    """

    step: int = 0
    update: int = 0
    skipped_in_a_row: int = 0
    prompt_position: int = 0
    control: ControlState | None = None
    controlled_by: str = ""

    @property
    def weight_version(self) -> int:
        """Version of the current weights on the rollout servers; there is one version per step."""
        return self.step

    def advance(self, *, num_updates: int) -> None:
        """Count a finished step with its optimizer steps."""
        self.step += 1
        self.update += num_updates


@dataclass(frozen=True)
class RolloutState:
    """What the next rollout batch continues from, beside the data position. It is on rank 0 alone.

    carried: groups that the last collected batch of partial rollouts left unfinished.
    accuracies: running accuracy of each prompt; None without a curriculum.
    """

    carried: tuple[CarriedGroup, ...] = ()
    accuracies: PromptAccuracies | None = None
