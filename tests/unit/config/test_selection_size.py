"""How many tokens a covariance ratio selects, and when that is too few."""

from __future__ import annotations

import pytest

from megacov.config import RunConfig, config_warnings, load_config
from megacov.config.selection_size import (
    FEWEST_SELECTED,
    most_tokens_in_scope,
    num_selected,
    tokens_in_scope,
    why_too_few,
)
from megacov.config.selections import LARGE_RATIO

TINY = "yaml_configs/runs/tiny_kl_cov.yaml"


def config_of(*overrides: str, ratio: float = 2e-4) -> RunConfig:
    return load_config(TINY, (f"algorithm.selection.ratio={ratio}", *overrides))


def test_the_papers_ratio_on_a_small_batch_is_named_with_what_it_selects_and_a_better_one():
    config = config_of("batch.updates_per_rollout=10", "rollout.prompts_per_step=50")
    (warning,) = config_warnings(config)
    assert "ratio is 0.0002, which selects at most 1 of the at most 320 response tokens of a mini-batch" in warning
    assert "the smallest sensible ratio here is 0.016, which selects 5" in warning
    assert config_warnings(config_of("batch.updates_per_rollout=10", "rollout.prompts_per_step=50", ratio=0.016)) == []


@pytest.mark.parametrize("tokens", [*range(6, 60), 99, 101, 380, 1024, 12345, 2_097_152])
def test_the_ratio_that_is_named_selects_enough_and_little_less_does_not(tokens):
    sentence = why_too_few(config_of(ratio=1e-9), tokens, at_most=False)
    named = float(sentence.partition("ratio here is ")[2].partition(",")[0].partition(" with")[0])
    assert num_selected(named, tokens) >= FEWEST_SELECTED > num_selected(named * 0.9, tokens) - 1
    assert named <= 1.1 * FEWEST_SELECTED / tokens
    assert ("allow_large_ratio=true" in sentence) == (named >= LARGE_RATIO)


def test_too_few_tokens_for_any_ratio_ask_for_a_larger_batch():
    for tokens in range(6):
        assert "raise rollout.prompts_per_step" in why_too_few(config_of(), tokens, at_most=False)


def test_the_scope_decides_how_many_tokens_compete():
    assert most_tokens_in_scope(config_of()) == 64 * 8 * 8 // 4
    assert most_tokens_in_scope(config_of("algorithm.selection.scope=rollout_batch")) == 64 * 8 * 8
    micro = config_of("algorithm.selection.scope=micro_batch", "batch.micro_batch_tokens=100", "parallel.data=2")
    assert most_tokens_in_scope(micro) == 100
    assert tokens_in_scope(micro, 64 * 8.0) == 64


@pytest.mark.parametrize("name", ["qwen2.5_32b_kl_cov_8n", "qwen2.5_7b_clip_cov_1n", "tiny_clip_cov", "tiny_grpo"])
def test_other_runs_have_no_such_warning(name):
    assert not [each for each in config_warnings(load_config(f"yaml_configs/runs/{name}.yaml")) if "selects" in each]
