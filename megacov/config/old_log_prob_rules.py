"""What needs the trainer's own old log-probs or entropies, which `algorithm.old_log_probs: rollout` leaves out."""

from __future__ import annotations

from megacov.config.schema import RunConfig


def the_servers_log_probs_are_enough(config: RunConfig) -> str | None:
    """If old log-probs are the server's, nothing is computed before the first update, and no entropy is known."""
    algorithm = config.algorithm
    if algorithm.old_log_probs == "recompute":
        return None
    selection, correction = algorithm.selection, algorithm.rollout_correction.level
    begin, instead = "algorithm.old_log_probs is rollout and algorithm.", "or algorithm.old_log_probs=recompute."
    if algorithm.loss.needs_old_entropy or algorithm.loss.needs_filtered_old:
        return old_entropy_mismatch(config)
    if algorithm.entropy_mask.keep != "all":
        return (
            f"{begin}entropy_mask.keep is {algorithm.entropy_mask.keep}, which needs the trainer's entropies before an "
            f"update: set algorithm.entropy_mask.keep=all, {instead}"
        )
    if algorithm.max_entropy.coef > 0:
        return (
            f"{begin}max_entropy.coef is {algorithm.max_entropy.coef}, a reward for the trainer's entropies before an "
            f"update: set algorithm.max_entropy.coef=0, {instead}"
        )
    if selection.name == "high_entropy":
        return (
            f"{begin}selection.name is high_entropy, which needs the trainer's entropies before an update: set another "
            f"selection, {instead}"
        )
    if selection.name == "steer" and selection.log_probs == "old":
        return (
            f"{begin}selection.name is steer with log_probs old, whose entropies nobody knows: set "
            f"algorithm.selection.log_probs=current, {instead}"
        )
    if selection.scope == "rollout_batch" and selection.log_probs == "current":
        return (
            f"{begin}selection.scope is rollout_batch with log_probs current, which nobody knows before the first "
            f"update: set algorithm.selection.log_probs=old for the server's, algorithm.selection.scope=mini_batch, "
            f"{instead}"
        )
    if correction != "none":
        return (
            f"{begin}rollout_correction.level is {correction}, which would weigh tokens twice, since the ratio to the "
            f"server's log-probs holds that weight: set algorithm.rollout_correction.level=none, {instead}"
        )
    return None


def old_entropy_mismatch(config: RunConfig) -> str | None:
    """Why a loss that reads entropies or more of the old policy cannot have them; None if it can."""
    if config.algorithm.old_log_probs == "recompute":
        return None
    return (
        f"algorithm.loss.name is {config.algorithm.loss.name}, which reads the trainer's entropies or filtered "
        "log-probs before an update, and algorithm.old_log_probs is rollout: set algorithm.old_log_probs=recompute, or "
        "another loss."
    )
