"""Settings that break the rules about the scope of a selection, with what the error says."""

from __future__ import annotations

from tests.support.config_values import algorithm

SELECTION_RULES = {
    "micro_batch_scope_has_two_sequences": (
        {"algorithm": algorithm("kl_cov", name="kl_cov", scope="micro_batch"), "batch": {"micro_batch_tokens": 3}},
        "scope is micro_batch and batch.micro_batch_tokens is 3, .* set algorithm.selection.scope=mini_batch",
    ),
    "micro_batch_scope_has_two_sequences (ranks)": (
        {
            "algorithm": algorithm("kl_cov", name="kl_cov", scope="micro_batch"),
            "batch": {"micro_batch_tokens": 20480, "updates_per_rollout": 4},
            "rollout": {"prompts_per_step": 2, "samples_per_prompt": 4},
            "parallel": {"data": 2},
        },
        "parallel.data=2 ranks share 2 sequences of an optimizer step.* lower parallel.data",
    ),
    "method_saves_a_pass": (
        {"algorithm": algorithm("kl_cov", name="kl_cov", method="deferred", scope="rollout_batch")},
        "method is deferred and algorithm.selection.scope is rollout_batch: .* set algorithm.selection.scope=mini",
    ),
    "method_saves_a_pass (log-probs)": (
        {"algorithm": algorithm("kl_cov", name="kl_cov", method="deferred", log_probs="old")},
        "algorithm.selection.log_probs is old: .* set algorithm.selection.log_probs=current",
    ),
    "method_saves_a_pass (correction)": (
        {"algorithm": algorithm("kl_cov", name="kl_cov", method="correction", scope="rollout_batch")},
        "method is correction and algorithm.selection.scope is rollout_batch: a gradient is .* set .*scope=mini",
    ),
}
