"""A run's curriculum: read when a batch begins, and brought up to date when it is collected."""

from __future__ import annotations

from megacov.config import RunConfig
from megacov.data import CurriculumSettings, PromptAccuracies, UsedPrompts
from megacov.rollout import SampledGroups
from megacov.trainer.state import RolloutState


def begin_curriculum(config: RunConfig, *, num_prompts: int) -> PromptAccuracies | None:
    """Accuracies of a run that begins; None without a curriculum.

    Args:
        config: the run's configuration.
        num_prompts: prompts of all sources.

    Returns:
        Accuracies of which nothing is known yet.
    """
    if config.data.curriculum is None:
        return None
    settings = CurriculumSettings(**config.data.curriculum.model_dump())
    return PromptAccuracies.unknown(settings, num_prompts=num_prompts)


def account_for(
    groups: SampledGroups, used: UsedPrompts, before: RolloutState
) -> tuple[RolloutState, dict[str, float]]:
    """Bring the state up to date with a batch.

    Args:
        groups: groups of the batch; those that filtering dropped count too.
        used: prompts of the batch.
        before: the state with which the batch began.

    Returns:
        The state after it, and `curriculum/*`, which is empty without a curriculum.
    """
    if before.accuracies is None:
        return RolloutState(groups.carried), {}
    accuracies = before.accuracies.after(used.turns, [*groups.samples, *groups.dropped])
    return RolloutState(groups.carried, accuracies), used.metrics(before.accuracies)
