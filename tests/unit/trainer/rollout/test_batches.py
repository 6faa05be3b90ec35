"""A rollout batch has the rewards that training sees."""

from __future__ import annotations

import torch

from megacov.config import load_config
from megacov.rollout import SampledGroups
from megacov.rollout.sampling.groups import JudgedGroup, SamplingReport
from megacov.trainer.rollout.batches import make_batch
from megacov.trainer.rollout.metrics import metrics_of
from megacov.types import Completion, Prompt, Verdict, VersionSpan

TINY = "yaml_configs/runs/tiny_grpo.yaml"


def groups_of(lengths: list[int], rewards: list[float]) -> SampledGroups:
    completions = [Completion((7,) * n, (-1.0,) * n, "", "stop", (VersionSpan("3", 0, n),)) for n in lengths]
    group = JudgedGroup(Prompt(0, "1=", (1,), "1"), completions, [Verdict(reward) for reward in rewards])
    return SampledGroups(group.samples(0), [], SamplingReport())


def test_training_sees_the_penalty_for_length_and_nothing_else_does() -> None:
    config = load_config(TINY, ("rollout.max_response_length=8", "rewards.overlong_buffer=4"))
    groups = groups_of([4, 6, 8], [1.0, 1.0, 0.0])
    assert make_batch(config, groups).rewards.tolist() == [1.0, 0.5, -1.0]
    metrics = metrics_of(groups, config, version=3)
    assert (metrics["reward/overlong_penalty"], metrics["reward/mean"]) == (0.5, 2 / 3)
    assert [sample.reward for sample in groups.samples] == [1.0, 1.0, 0.0]  # what dynamic filtering compares


def test_without_a_penalty_rewards_are_the_verifiers() -> None:
    config, groups = load_config(TINY), groups_of([1, 8], [0.1, 3e38])
    assert torch.equal(make_batch(config, groups).rewards, torch.tensor([0.1, 3e38]))
    assert metrics_of(groups, config, version=3)["reward/overlong_penalty"] == 0.0
