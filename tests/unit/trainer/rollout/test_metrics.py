"""Metrics of a batch are of the responses that are in it."""

from __future__ import annotations

from megacov.config import load_config
from megacov.rollout import SampledGroups
from megacov.rollout.sampling.groups import JudgedGroup, SamplingReport
from megacov.trainer.rollout.metrics import metrics_of
from megacov.types import Completion, Prompt, Verdict, VersionSpan

COMPLETION = Completion((1,), (-0.5,), "x", "stop", (VersionSpan("3-ab", 0, 1),))


def _group(*verdicts: Verdict) -> JudgedGroup:
    return JudgedGroup(Prompt(0, "p", (1,), "a"), [COMPLETION] * len(verdicts), list(verdicts))


def test_a_group_left_for_the_next_batch_does_not_count_as_failed_in_this_one() -> None:
    """Its responses are judged again with the next batch, and counted there."""
    report = SamplingReport()
    used, left = _group(Verdict(1.0), Verdict(0.0, "timeout")), _group(Verdict(0.0, "died"), Verdict(0.0, "died"))
    for group in (used, left):
        group.count(report)
    metrics = metrics_of(
        SampledGroups(used.samples(0), [], report), load_config("yaml_configs/runs/tiny_grpo.yaml"), version=4
    )
    assert metrics["reward/verifier_failed"] == 0.5
    assert (metrics["reward/verifier_timeout"], metrics["reward/verifier_died"]) == (1, 0)
    assert metrics["rollout/version_lag"] == 1.0
