"""Metrics of a rollout batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from megacov.config import RunConfig
from megacov.data.packing import num_overlong
from megacov.monitor.metrics import entropy_before_filter, reward_metrics, rollout_metrics, version_lag
from megacov.monitor.source_metrics import source_metrics
from megacov.rewards.overlong import OverlongPenalty
from megacov.rollout import SampledGroups
from megacov.types import VERIFIER_FAILURES


def metrics_of(
    groups: SampledGroups, config: RunConfig, *, version: int, sources: Sequence[str] = ()
) -> dict[str, float]:
    """Compute the metrics of a batch, over kept and dropped groups unless a tag's description says otherwise.

    Args:
        groups: samples of one batch.
        config: the run's configuration.
        version: version of the weights trained on them.
        sources: names of the sources of prompts.

    Returns:
        `reward/*`, `rollout/*` and an entropy, except what the fleet counts.
    """
    report, sampled = groups.report, [*groups.samples, *groups.dropped]
    penalties = OverlongPenalty.of_run(config).of_all(sampled)
    rewards = torch.tensor([sample.reward for sample in sampled], dtype=torch.float64)
    # Not from the report, which also counts groups that were judged and then left for the next batch.
    failures = Counter(sample.failure for sample in sampled if sample.failure is not None)
    return {
        **reward_metrics(rewards, torch.tensor([sample.group for sample in sampled])),
        **rollout_metrics(groups.samples),
        **entropy_before_filter(sampled),
        **version_lag(groups.samples, version=version),
        **source_metrics(groups.samples, groups.dropped, sources),
        "reward/verifier_failed": failures.total() / len(sampled),
        **{f"reward/verifier_{kind}": failures[kind] for kind in VERIFIER_FAILURES},
        "reward/overlong_penalty": sum(penalties) / len(penalties),
        "rollout/overlong_masked": num_overlong(groups.samples) if config.rollout.mask_overlong else 0,
        "rollout/retries": report.retries,
        "rollout/dropped_groups": report.dropped_groups,
        "rollout/refill_rounds": report.refill_rounds,
        "rollout/aborted_groups": report.aborted_groups,
        "rollout/unused_groups": report.unused_groups,
        "rollout/aborted": report.aborted,
        "rollout/wrong_version": report.wrong_version,
        "rollout/empty": report.empty,
        "rollout/groups": len({sample.group for sample in groups.samples}),
        "rollout/carried": report.carried,
        "rollout/continued_tokens": report.continued_tokens,
        "rollout/stale_dropped": report.stale_dropped,
    }
