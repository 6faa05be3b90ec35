"""Metrics of a batch are of the responses that are in it."""

from __future__ import annotations

from megacov.config import load_config
from megacov.monitor.source_metrics import source_tags
from megacov.rollout import SampledGroups
from megacov.rollout.sampling.groups import JudgedGroup, SamplingReport
from megacov.trainer.rollout.metrics import metrics_of
from megacov.types import Completion, Prompt, Sample, Verdict, VersionSpan

TINY = "yaml_configs/runs/tiny_grpo.yaml"
COMPLETION = Completion((1,), (-0.5,), "x", "stop", (VersionSpan("3-ab", 0, 1),))


def _group(*verdicts: Verdict) -> JudgedGroup:
    return JudgedGroup(Prompt(0, "p", (1,), "a"), [COMPLETION] * len(verdicts), list(verdicts))


def test_a_group_left_for_the_next_batch_does_not_count_as_failed_in_this_one() -> None:
    """Its responses are judged again with the next batch, and counted there."""
    report = SamplingReport()
    used, left = _group(Verdict(1.0), Verdict(0.0, "timeout")), _group(Verdict(0.0, "died"), Verdict(0.0, "died"))
    for group in (used, left):
        group.count(report)
    metrics = metrics_of(SampledGroups(used.samples(0), [], report), load_config(TINY), version=4)
    assert metrics["reward/verifier_failed"] == 0.5
    assert (metrics["reward/verifier_timeout"], metrics["reward/verifier_died"]) == (1, 0)
    assert metrics["rollout/version_lag"] == 1.0


def test_sources_have_their_own_means() -> None:
    def group(source: int, number: int, *rewards: float) -> list[Sample]:
        judged = JudgedGroup(
            Prompt(number, "p", (1,), "a", source=source), [COMPLETION] * len(rewards), [Verdict(r) for r in rewards]
        )
        return judged.samples(number)

    kept, dropped = [*group(0, 0, 1.0, 0.0), *group(1, 1, 0.5, 0.0, 1.0), *group(0, 2, 1.0, 0.0)], group(0, 3, 0.0, 0.0)
    names = ["easy", "hard", "absent"]
    metrics = metrics_of(SampledGroups(kept, dropped, SamplingReport()), load_config(TINY), version=4, sources=names)
    own = {name: value for name, value in metrics.items() if name.endswith(("_easy", "_hard", "_absent"))}
    assert own == {
        "reward/mean_easy": 2 / 6,  # dropped groups count in the rewards
        "reward/mean_hard": 0.5,
        "rollout/length_mean_easy": 1.0,
        "rollout/length_mean_hard": 1.0,
        "rollout/share_easy": 2 / 3,
        "rollout/share_hard": 1 / 3,
        "rollout/share_absent": 0.0,
    }
    assert own.keys() <= {tag.name for tag in source_tags(names)}
    single = metrics_of(SampledGroups(kept, dropped, SamplingReport()), load_config(TINY), version=4, sources=["only"])
    assert single.keys() == metrics.keys() - own.keys()
    assert source_tags(["only"]) == ()
