"""Warnings: a case that gives each, alone, and plain runs that give none."""

from __future__ import annotations

import pytest

from megacov.config import config_warnings, make_config
from megacov.config.advice import ADVICE
from tests.support.config_values import algorithm, values

WARNED = {
    "kl_cov_needs_a_second_update": {
        "algorithm": algorithm("kl_cov", name="kl_cov"),
        "batch": {"updates_per_rollout": 1},
    },
    "the_sign_of_a_mismatch_is_noise": {
        "algorithm": algorithm("kl_cov", name="kl_cov") | {"old_log_probs": "rollout"},
        "batch": {"updates_per_rollout": 1},
        "rollout": {"max_staleness": 1},
    },
    "band_needs_normalized_advantages": {
        "algorithm": algorithm("clip_cov", name="clip_cov") | {"advantages": {"normalize_std": False}}
    },
    "sampling_is_the_policy": {"rollout": {"top_p": 0.95}},
    "micro_batch_scope_depends_on_the_layout": {
        "algorithm": algorithm("kl_cov", name="kl_cov", scope="micro_batch", ratio=2e-3),
        "batch": {"micro_batch_tokens": 20480},
    },
    "min_lr_needs_a_decay": {"optimizer": {"min_lr": 1e-7}},
    "an_evaluation_is_due_within_the_run": {"evaluation": {"suite": "paper"}},
    "warmup_ends": {"optimizer": {"warmup_steps": 40}},
    "stale_samples_are_corrected": {"rollout": {"max_staleness": 1}},
    "over_sampled_prompts_run_at_once": {"rollout": {"over_sample": 1.5, "max_concurrency": 383}},
    "ratio_selects_some_tokens": {
        "algorithm": algorithm("clip_cov", name="clip_cov"),
        "rollout": {"prompts_per_step": 8, "max_response_length": 300},
    },
    "memory_is_in_gib": {"cluster": {"gpu_memory_gib": 81920.0}},
    "bucket_is_in_bytes": {
        "weight_sync": {"transport": "ipc", "bucket_bytes": 512},
        "rollout": {"engine": "sglang", "servers": 1},
    },
    "a_pause_in_place_is_shorter_than_the_watchdog": {
        "rollout": {"engine": "sglang", "servers": 1, "server_arguments": {"watchdog-timeout": 100}},
        "weight_sync": {"pause_mode": "in_place", "transport": "ipc"},
    },
}


@pytest.mark.parametrize("name", WARNED)
def test_each_warning_comes_alone(name):
    config = make_config(values(**WARNED[name]))
    (sentence,) = config_warnings(config)
    assert sentence == next(advise for advise in ADVICE if advise.__name__ == name)(config)
    assert sentence.endswith(".")


def test_a_penalty_without_a_sign_takes_the_servers_log_probs():
    loss = {"name": "kl_cov", "estimator": "k2"}
    sections = algorithm("kl_cov", name="kl_cov") | {"old_log_probs": "rollout", "loss": loss}
    assert config_warnings(make_config(values(algorithm=sections))) == []


def test_the_band_of_clip_cov_fits_neither_estimator_that_keeps_the_scale_of_rewards():
    sections = algorithm("clip_cov", name="clip_cov") | {"advantages": {"name": "rloo"}}
    (sentence,) = config_warnings(make_config(values(algorithm=sections)))
    assert "algorithm.advantages.name is rloo: the paper's band of 1 to 5" in sentence


def test_every_warning_has_a_case():
    assert {advise.__name__ for advise in ADVICE} == set(WARNED)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optimizer": {"warmup_steps": 39}},
        {"optimizer": {"min_lr": 1e-7, "decay": "cosine"}},
        {"rollout": {"over_sample": 1.5, "max_concurrency": 384}},
    ],
)
def test_a_plain_run_has_no_warning(sections):
    assert config_warnings(make_config(values(**sections))) == []
