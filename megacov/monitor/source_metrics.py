"""Metrics of each source of prompts, where a run mixes several."""

from __future__ import annotations

from collections.abc import Sequence

from megacov.monitor.tag import Tag
from megacov.types import Sample


def source_tags(names: Sequence[str]) -> tuple[Tag, ...]:
    """Tags of several sources; none for a single one, whose metrics are those of the run."""
    if len(names) < 2:
        return ()
    return tuple(tag for name in names for tag in _tags_of(name))


def _tags_of(name: str) -> tuple[Tag, ...]:
    return (
        Tag(f"reward/mean_{name}", f"Mean reward of source {name}.", "reward", "sequences"),
        Tag(f"rollout/length_mean_{name}", f"Mean length of the responses of source {name}.", "tokens", "sequences"),
        Tag(f"rollout/share_{name}", f"Groups trained on that are of source {name}.", "share", "groups"),
    )


def source_metrics(kept: Sequence[Sample], dropped: Sequence[Sample], names: Sequence[str]) -> dict[str, float]:
    """Statistics of each source's samples in one rollout batch.

    Args:
        kept: samples that are trained on.
        dropped: samples of the groups that dynamic filtering left out; they count in the rewards alone.
        names: names of the sources.

    Returns:
        The metrics of `source_tags`; means are absent for a source without samples.
    """
    if len(names) < 2:
        return {}
    metrics: dict[str, float] = {}
    num_groups = len({sample.group for sample in kept})
    for place, name in enumerate(names):
        own = [sample for sample in kept if sample.prompt.source == place]
        rewards = [sample.reward for sample in [*kept, *dropped] if sample.prompt.source == place]
        metrics[f"rollout/share_{name}"] = len({sample.group for sample in own}) / num_groups
        if rewards:
            metrics[f"reward/mean_{name}"] = sum(rewards) / len(rewards)
        if own:
            lengths = [len(sample.completion.token_ids) for sample in own]
            metrics[f"rollout/length_mean_{name}"] = sum(lengths) / len(lengths)
    return metrics
