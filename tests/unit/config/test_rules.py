"""Rules between sections: a case that breaks each, one that narrowly does not, and the sentence."""

from __future__ import annotations

import pytest

from megacov.config import make_config
from megacov.config.rules import RULES
from megacov.errors import ConfigError
from tests.support.config_values import algorithm, values
from tests.support.controller_rules import BROKEN_CONTROLLERS, HELD_CONTROLLERS
from tests.support.old_log_prob_rules import OLD_LOG_PROB_RULES
from tests.support.selection_rules import SELECTION_RULES

BROKEN = {
    "secrets_stay_out_of_files (environment)": (
        {"rollout": {"server_environment": {"GITHUB_PAT": "abc"}}},
        "rollout.server_environment.GITHUB_PAT looks like a secret, and RUN/config.yaml, .* export it in the shell",
    ),
    "secrets_stay_out_of_files (option)": (
        {"rollout": {"server_arguments": {"ssl-keyfile-password": "abc"}}},
        "rollout.server_arguments.ssl-keyfile-password looks like a secret",
    ),
    "secrets_stay_out_of_files (anywhere)": (
        {"rewards": {"verifier": "https://me:abc@host/judge"}},
        "rewards.verifier looks like a secret",
    ),
    "overlong_buffer_fits_a_response": (
        {"rollout": {"max_response_length": 1000}, "rewards": {"verifier": "sum_pairs", "overlong_buffer": 1000}},
        "overlong_buffer is 1000 and rollout.max_response_length 1000: every response .* as in 200",
    ),
    "ratio_is_a_fraction": (
        {"algorithm": algorithm("kl_cov", name="kl_cov", ratio=0.2)},
        r"algorithm.selection.ratio is 0.2, .* less than 0.05: if it was a percentage set 0.002, .*allow_large",
    ),
    "ratio_is_a_fraction (clip_cov, at the limit)": (
        {"algorithm": algorithm("clip_cov", name="clip_cov", ratio=0.05)},
        "algorithm.selection.ratio is 0.05",
    ),
    "loss_and_selection_fit (nothing selected)": (
        {"algorithm": algorithm("kl_cov", name="none")},
        "loss.name is kl_cov and algorithm.selection.name is none: kl_cov acts on selected tokens, so set",
    ),
    "loss_and_selection_fit (nobody reads it)": (
        {"algorithm": algorithm("ppo_clip", name="clip_cov")},
        "so set algorithm.selection.name=none",
    ),
    "loss_and_selection_fit (high entropy)": (
        {"algorithm": algorithm("ppo_clip", name="high_entropy")},
        "so set algorithm.selection.name=none",
    ),
    "a_loss_at_the_rollout_needs_no_correction": (
        {"algorithm": {"loss": {"name": "dppo"}, "rollout_correction": {"level": "token"}}},
        r"loss.name is dppo, .* algorithm.rollout_correction.level is token, which would weigh them twice: set it to",
    ),
    "a_loss_has_its_own_selection": (
        {"algorithm": algorithm("m2po", name="kl_cov")},
        "loss.name is m2po and algorithm.selection.name is kl_cov: .* so set algorithm.selection.name=m2po",
    ),
    "a_loss_has_its_own_selection (none)": (
        {"algorithm": {"loss": {"name": "bapo"}}},
        "loss.name is bapo and algorithm.selection.name is none: .* so set algorithm.selection.name=bapo",
    ),
    "a_loss_has_its_own_selection (of another)": (
        {"algorithm": algorithm("clip_cov", name="bapo")},
        "the selection belongs to the loss bapo, so set algorithm.loss.name=bapo, or another selection",
    ),
    "updates_divide_the_batch": (
        {"rollout": {"prompts_per_step": 6, "samples_per_prompt": 2}, "batch": {"updates_per_rollout": 5}},
        r"updates_per_rollout is 5, .* the 12 sequences .*\(rollout.prompts_per_step 6 x 2 samples_per_prompt\)"
        r": set it to 4 or 6, or change the batch",
    ),
    "updates_divide_the_batch (more updates than sequences)": (
        {"rollout": {"prompts_per_step": 2, "samples_per_prompt": 2}, "batch": {"updates_per_rollout": 8}},
        "set it to 4, or change the batch",
    ),
    "every_rank_has_a_sequence": (
        {
            "rollout": {"prompts_per_step": 2, "samples_per_prompt": 4},
            "batch": {"updates_per_rollout": 4},
            "parallel": {"data": 3},
        },
        r"parallel.data is 3 and an optimizer step has 2 sequences \(8 in 4 updates\): lower parallel.data",
    ),
    "engine_has_its_servers (none)": (
        {"rollout": {"engine": "sglang"}},
        "engine is sglang, rollout.addresses is empty and rollout.servers is 0: .* as in rollout.servers=1",
    ),
    "engine_has_its_servers (unread addresses)": (
        {"rollout": {"addresses": ["http://127.0.0.1:1"]}},
        "rollout.engine is embedded and rollout.addresses names 1 servers, .* or set rollout.engine=sglang",
    ),
    "engine_has_its_servers (unread servers)": (
        {"rollout": {"servers": 2}},
        "rollout.engine is embedded and rollout.servers is 2, which it would not use",
    ),
    "engine_has_its_servers (both)": (
        {"rollout": {"engine": "sglang", "addresses": ["http://127.0.0.1:1"], "servers": 2}},
        "rollout.addresses names 1 servers and rollout.servers is 2: .* not both",
    ),
    "engine_has_its_servers (a list and a file)": (
        {"rollout": {"engine": "sglang", "addresses": ["http://127.0.0.1:1"], "addresses_file": "servers.txt"}},
        "rollout.addresses names 1 servers and rollout.addresses_file is servers.txt: .* in one place",
    ),
    "keys_are_of_servers_that_already_run": (
        {"rollout": {"engine": "sglang", "servers": 1, "keys_file": "keys.yaml"}},
        "rollout.keys_file is keys.yaml and neither rollout.addresses nor rollout.addresses_file names",
    ),
    "every_server_has_its_devices": (
        {"rollout": {"engine": "sglang", "servers": 2, "server_devices": ["0,1"]}},
        "rollout.server_devices has 1 entries and rollout.servers is 2",
    ),
    **SELECTION_RULES,
    **OLD_LOG_PROB_RULES,
    **BROKEN_CONTROLLERS,
    "repeatable_samples_come_from_the_embedded_server": (
        {
            "run": {"name": "x", "steps": 5, "deterministic": True},
            "rollout": {"engine": "sglang", "addresses": ["http://127.0.0.1:1"]},
        },
        "run.deterministic is true and rollout.engine is sglang: .* or rollout.engine=embedded",
    ),
    "partial_rollouts_have_room_to_age": (
        {"rollout": {"max_staleness": 1, "extra_prompts": 4}},
        "rollout.extra_prompts is 4 and rollout.max_staleness is 1: .* set rollout.max_staleness=2",
    ),
    "partial_rollouts_have_room_to_age (deadline)": (
        {"rollout": {"partial_after_s": 60.0}},
        "rollout.partial_after_s is 60.0 and rollout.max_staleness is 0",
    ),
    "partial_rollouts_do_not_repeat": (
        {"run": {"name": "x", "steps": 5, "deterministic": True}, "rollout": {"max_staleness": 2, "extra_prompts": 4}},
        "rollout.extra_prompts is 4 and run.deterministic is true: .* set run.deterministic=false",
    ),
    "over_sampling_has_groups_to_replace": (
        {"rollout": {"over_sample": 1.5, "filter_groups": False}},
        "rollout.over_sample is 1.5 and rollout.filter_groups is false: .* set rollout.over_sample=1.0",
    ),
    "over_sampling_is_not_partial": (
        {"rollout": {"over_sample": 1.01, "max_staleness": 2, "extra_prompts": 4}},
        "rollout.over_sample is 1.01 and rollout.extra_prompts is 4, .* use one of them",
    ),
    "over_sampling_is_not_partial (deadline)": (
        {"rollout": {"over_sample": 2.0, "max_staleness": 2, "partial_after_s": 60.0}},
        "rollout.over_sample is 2.0 and rollout.partial_after_s is 60.0",
    ),
    "the_embedded_server_reads_weights_from_disk": (
        {"weight_sync": {"transport": "broadcast"}},
        "weight_sync.transport is broadcast and rollout.engine is embedded.* or rollout.engine=sglang",
    ),
    "programs_run_only_where_allowed": (
        {"rewards": {"verifier": "code"}},
        "rewards.verifier is code, .* rewards.allow_code is false: read .* set rewards.allow_code=true",
    ),
    "programs_run_only_where_allowed (a source's)": (
        {
            "data": {"path": None, "sources": [{"name": "a", "path": "a.jsonl", "verifier": "code"}]},
            "rewards": {"verifier": "sum_pairs"},
        },
        r"data.sources.0.verifier is code",
    ),
    "programs_run_only_where_allowed (a part)": (
        {"rewards": {"verifier": "weighted", "arguments": {"parts": [{"verifier": "code", "weight": 1}]}}},
        "a part of rewards.verifier is code",
    ),
    "a_verifier_ends_before_its_verdict_is_due": (
        {"rewards": {"verifier": "code", "allow_code": True, "timeout_s": 25.0}},
        "total_s = 25 s, and rewards.timeout_s is 25: raise rewards.timeout_s, or lower the argument total_s",
    ),
    "staging_is_bounded": (
        {
            "rollout": {"engine": "sglang", "servers": 1},
            "weight_sync": {"transport": "reshard", "bucket_bytes": 2**30 + 1},
        },
        "weight_sync.bucket_bytes is 1073741825, .* set at most 1073741824",
    ),
    "shards_for_requests_are_on_one_machine": (
        {
            "rollout": {"engine": "sglang", "servers": 1},
            "weight_sync": {"transport": "ipc_shards"},
            "parallel": {"data": 9},
        },
        "the run has 9 ranks, and cluster.gpus_per_node is 8: set weight_sync.transport to broadcast or ipc",
    ),
    "servers_are_given_up_before_ranks": (
        {
            "rollout": {"engine": "sglang", "servers": 1},
            "weight_sync": {"transport": "broadcast"},
            "parallel": {"timeout_s": 400.0},
        },
        "weight_sync.timeout_s is 300 and parallel.timeout_s is 400: .* at least 120 s longer",
    ),
    "an_evaluation_has_servers_while_training": (
        {"evaluation": {"suite": "x"}, "rollout": {"engine": "sglang", "servers": 1, "colocated": True}},
        "evaluation.suite is set and rollout.colocated is true, .* score checkpoints with `megacov evaluate`",
    ),
    "ranks_wait_for_the_last_evaluation": (
        {"evaluation": {"suite": "paper", "timeout_s": 20000.0}},
        "evaluation.timeout_s is 20000 and parallel.control_timeout_s is 14400, .* keep evaluation.timeout_s shorter",
    ),
    "colocated_servers_take_turns_with_the_trainer": (
        {"rollout": {"colocated": True}},
        "rollout.colocated is true and rollout.engine is embedded.*rollout.engine=sglang",
    ),
    "virtual_stages_have_a_pipeline": (
        {"parallel": {"virtual_pipeline": 2}},
        "parallel.virtual_pipeline is 2 and parallel.pipeline is 1: raise parallel.pipeline",
    ),
    "experts_are_shared_out_within_a_stage": (
        {"parallel": {"expert": 4, "tensor": 2, "context": 3, "pipeline": 2}},
        r"parallel.expert is 4 and a pipeline stage has 6 ranks \(.* x parallel.data 1\), .* to 1, 2, 3 or 6",
    ),
    "sequence_parallelism_has_tensor_parallelism": (
        {"parallel": {"sequence": True}},
        "parallel.sequence is true and parallel.tensor is 1: raise parallel.tensor",
    ),
}

HELD = [
    {
        "rollout": {"engine": "sglang", "servers": 1},
        "weight_sync": {"transport": "ipc_shards"},
        "parallel": {"data": 8},
    },
    {
        "rollout": {"engine": "sglang", "servers": 1},
        "weight_sync": {"transport": "reshard", "bucket_bytes": 2**30},
    },
    {"rewards": {"verifier": "code", "allow_code": True, "timeout_s": 25.1}},
    {"rewards": {"verifier": "code", "allow_code": True, "timeout_s": 5.0, "arguments": {"total_s": 4.9}}},
    {"rollout": {"max_response_length": 1000}, "rewards": {"verifier": "sum_pairs", "overlong_buffer": 999}},
    {},
    {"rollout": {"server_environment": {"KEYBOARD": "us"}, "server_arguments": {"max-total-tokens": 4096}}},
    {"algorithm": algorithm("kl_cov", name="kl_cov", ratio=0.0499)},
    {"algorithm": algorithm("kl_cov", name="kl_cov", ratio=0.2, allow_large_ratio=True)},
    {"algorithm": algorithm("kl_cov", name="high_entropy", ratio=0.2)},
    {"algorithm": algorithm("clip_cov", name="clip_cov")},
    {"algorithm": algorithm("m2po", name="m2po")},
    {"algorithm": algorithm("lp_reg", name="lp_reg")},
    {"algorithm": {"old_log_probs": "rollout", "max_entropy": {"discount": 0.5}}},
    {"algorithm": algorithm("steer", name="steer", log_probs="old")},
    {"algorithm": {"old_log_probs": "rollout", **algorithm("steer", name="steer")}},
    {"algorithm": algorithm("bapo", name="bapo", scope="rollout_batch")},
    {"algorithm": algorithm("kl_cov", name="clip_cov")},
    {"rollout": {"prompts_per_step": 2, "samples_per_prompt": 3}, "batch": {"updates_per_rollout": 2}},
    {
        "rollout": {"prompts_per_step": 2, "samples_per_prompt": 3},
        "batch": {"updates_per_rollout": 2},
        "parallel": {"data": 3},
    },
    {"rollout": {"engine": "sglang", "addresses": ["https://host:1", "http://other:2"], "keys_file": "keys.yaml"}},
    {"rollout": {"engine": "sglang", "addresses_file": "servers.txt", "keys_file": "keys.yaml"}},
    {"rollout": {"max_staleness": 2, "extra_prompts": 4, "partial_after_s": 60.0}},
    {"run": {"name": "x", "steps": 5, "deterministic": True}, "rollout": {"max_staleness": 1}},
    {"run": {"name": "x", "steps": 5, "deterministic": True}, "rollout": {"over_sample": 2.0}},
    {"rollout": {"over_sample": 1.0, "filter_groups": False}},
    {"algorithm": algorithm("kl_cov", name="kl_cov", scope="micro_batch"), "batch": {"micro_batch_tokens": 20480}},
    {"algorithm": algorithm("kl_cov", name="high_entropy", scope="micro_batch")},
    {"algorithm": algorithm("kl_cov", name="kl_cov", method="deferred")},
    {"algorithm": algorithm("kl_cov", name="kl_cov", method="correction")},
    {"algorithm": algorithm("kl_cov", name="kl_cov", method="pass", scope="rollout_batch")},
    {
        "algorithm": {
            "old_log_probs": "rollout",
            **algorithm("kl_cov", name="kl_cov", scope="rollout_batch", log_probs="old"),
        }
    },
    {"parallel": {"expert": 6, "tensor": 2, "context": 3}},
    {"parallel": {"virtual_pipeline": 2, "pipeline": 2, "tensor": 2, "sequence": True, "context": 2}},
]


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_says_what_to_change(case):
    sections, sentence = BROKEN[case]
    with pytest.raises(ConfigError, match=sentence) as caught:
        make_config(values(**sections))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("sections", [*HELD, *HELD_CONTROLLERS])
def test_what_narrowly_holds_is_let_through(sections):
    config = make_config(values(**sections))
    assert [rule(config) for rule in RULES] == [None] * len(RULES)


def test_every_rule_is_broken_by_a_case():
    assert {rule.__name__ for rule in RULES} == {case.partition(" ")[0] for case in BROKEN}
