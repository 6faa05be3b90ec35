"""Finds the entropy and the reward of a run among its metrics, whichever program wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacov.errors import DataError
from megacov.monitor.entropy_law.estimate import Floats
from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.history import Series

KNOWN_TAGS = {
    "megacov": ((ENTROPY_TAG,), (REWARD_TAG,)),
    "verl": (("actor/entropy", "actor/entropy_loss"), ("critic/score/mean", "critic/rewards/mean")),
    "slime": (("train/entropy_loss",), ("rollout/raw_reward", "rollout/rewards")),
    "NeMo-RL": (("train/approx_entropy",), ("train/reward",)),
    "TRL": (("train/entropy",), ("train/reward",)),
    "a table": (("entropy",), ("reward",)),
}
"""Tags of each program: those of the entropy and those of the reward, the better ones first."""
BEST_REWARD_TAGS = {REWARD_TAG: "reward/max", "critic/score/mean": "critic/score/max"}
"""Tags of a batch's highest reward beside those of its mean."""

_SHOWN_TAGS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Entropy and reward of one run at the steps that have both.

    entropy_tag, reward_tag: where they come from.
    steps: [n].
    entropies, rewards: [n]; may hold NaN.
    entropies_per_step: points of the entropy that were averaged for one of the reward.
    best_reward: highest reward of any response; None where that is not logged.
    """

    entropy_tag: str
    reward_tag: str
    steps: NDArray[np.int64]
    entropies: Floats
    rewards: Floats
    entropies_per_step: int = 1
    best_reward: float | None = None


def find_curve(
    scalars: Mapping[str, Series], *, source: str, entropy_tag: str | None = None, reward_tag: str | None = None
) -> Curve:
    """Pair entropy and reward by their steps.

    Args:
        scalars: metrics by tag.
        source: the run, for messages.
        entropy_tag: tag of the entropy; None looks for those of KNOWN_TAGS.
        reward_tag: tag of the reward or of an evaluation score; None looks for those of KNOWN_TAGS.

    Returns:
        The points at which both have a value.

    Raises:
        DataError: a tag is missing, or the two share no step.
    """
    of_entropy = _choose(scalars, 0, entropy_tag, other=reward_tag, source=source)
    of_reward = _choose(scalars, 1, reward_tag, other=of_entropy, source=source)
    entropy, reward = scalars[of_entropy], scalars[of_reward]
    per_step = 1
    if of_entropy in KNOWN_TAGS["slime"][0] and of_reward in KNOWN_TAGS["slime"][1]:
        per_step = _updates_per_rollout(entropy.steps, reward.steps)
        entropy = _average(entropy, per_step)
    steps, in_entropy, in_reward = np.intersect1d(entropy.steps, reward.steps, return_indices=True)
    if len(steps) == 0:
        raise DataError(
            f"{source} has no step with both {of_entropy} ({_extent(entropy)}) and {of_reward} ({_extent(reward)}): "
            "let it log one first, or name two tags that are logged together."
        )
    values = entropy.values[in_entropy], reward.values[in_reward]
    return Curve(of_entropy, of_reward, steps, *values, per_step, find_best_reward(scalars, of_reward))


def _choose(scalars: Mapping[str, Series], which: int, given: str | None, *, other: str | None, source: str) -> str:
    """The tag that was given, or the first known one; that of a program whose other tag is there too comes first."""
    option = ("--entropy", "--reward")[which]
    if given is not None:
        if given in scalars:
            return given
        raise DataError(f"{source} has no scalar {given}: give {option} one of {_names(scalars, which)}.")
    pairs = sorted(KNOWN_TAGS.values(), key=lambda pair: not any(tag in scalars for tag in (*pair[1 - which], other)))
    for pair in pairs:
        for tag in pair[which]:
            if tag in scalars and tag != other:
                return tag
    raise DataError(f"{source} has none of the tags that are known: give {option} one of {_names(scalars, which)}.")


def find_best_reward(scalars: Mapping[str, Series], reward_tag: str) -> float | None:
    """The highest reward of any response of a run; None where that is not logged."""
    tag = BEST_REWARD_TAGS.get(reward_tag)
    if tag is None or tag not in scalars:
        return None
    finite = scalars[tag].values[np.isfinite(scalars[tag].values)]
    return float(finite.max()) if len(finite) else None


def _names(scalars: Mapping[str, Series], which: int) -> str:
    words = (("entrop",), ("reward", "score", "acc", "pass"))[which]
    names = sorted(scalars, key=lambda name: (not any(word in name for word in words), name))
    more = f" and {len(names) - _SHOWN_TAGS} more" if len(names) > _SHOWN_TAGS else ""
    return ", ".join(names[:_SHOWN_TAGS]) + more if names else "its tags, once it has some"


def _extent(series: Series) -> str:
    return f"steps {series.steps[0]} to {series.steps[-1]}" if len(series.steps) else "no steps"


def _updates_per_rollout(train_steps: NDArray[np.int64], rollout_steps: NDArray[np.int64]) -> int:
    """slime counts optimizer steps for the entropy and rollouts for the reward: how many of those there are in one.

    The last rollout may not have been trained on yet.
    """
    if len(train_steps) == 0 or len(rollout_steps) == 0:
        return 1
    updates, rollouts = int(train_steps[-1]) + 1, int(rollout_steps[-1]) + 1
    exact = [n for n in (rollouts, rollouts - 1) if n > 0 and updates % n == 0]
    return max(round(updates / (exact[0] if exact else rollouts)), 1)


def _average(series: Series, per_step: int) -> Series:
    """Means of the values of each group of `per_step` steps."""
    if per_step == 1:
        return series
    groups, starts = np.unique(series.steps // per_step, return_index=True)
    counts = np.diff(np.append(starts, len(series.steps)))
    return Series(steps=groups, values=np.add.reduceat(series.values, starts) / counts)
