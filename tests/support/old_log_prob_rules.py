"""Settings that need the trainer's own old log-probs and do without them, with what the error says."""

from __future__ import annotations

from tests.support.config_values import algorithm

OLD_LOG_PROB_RULES = {
    "the_servers_log_probs_are_enough (entropy mask)": (
        {"algorithm": {"old_log_probs": "rollout", "entropy_mask": {"keep": "high"}}},
        r"old_log_probs is rollout and algorithm.entropy_mask.keep is high, .* set algorithm.entropy_mask.keep=all, or",
    ),
    "the_servers_log_probs_are_enough (old entropy)": (
        {"algorithm": {"old_log_probs": "rollout", "loss": {"name": "erc"}}},
        "loss.name is erc, which reads the trainer's entropies .* set algorithm.old_log_probs=recompute, or another",
    ),
    "the_servers_log_probs_are_enough (high entropy)": (
        {"algorithm": {"old_log_probs": "rollout", **algorithm("kl_cov", name="high_entropy")}},
        "selection.name is high_entropy, .* or algorithm.old_log_probs=recompute",
    ),
    "the_servers_log_probs_are_enough (entropy as a reward)": (
        {"algorithm": {"old_log_probs": "rollout", "max_entropy": {"coef": 0.1}}},
        "max_entropy.coef is 0.1, .* set algorithm.max_entropy.coef=0, or",
    ),
    "the_servers_log_probs_are_enough (filtered)": (
        {"algorithm": {"old_log_probs": "rollout", **algorithm("lp_reg", name="lp_reg")}},
        "loss.name is lp_reg, which reads the trainer's .* set algorithm.old_log_probs=recompute, or another",
    ),
    "the_servers_log_probs_are_enough (steer)": (
        {"algorithm": {"old_log_probs": "rollout", **algorithm("steer", name="steer", log_probs="old")}},
        "selection.name is steer with log_probs old, .* set algorithm.selection.log_probs=current, or",
    ),
    "the_servers_log_probs_are_enough (before any update)": (
        {"algorithm": {"old_log_probs": "rollout", **algorithm("kl_cov", name="kl_cov", scope="rollout_batch")}},
        "selection.scope is rollout_batch with log_probs current, .* set algorithm.selection.log_probs=old",
    ),
    "the_servers_log_probs_are_enough (correction)": (
        {"algorithm": {"old_log_probs": "rollout", "rollout_correction": {"level": "token"}}},
        "rollout_correction.level is token, which would weigh tokens twice, .* set algorithm.rollout_correction.level",
    ),
}
