"""Whether rollout servers hold the weights that are trained: judged by the log-probs that both give the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from megacov.errors import WeightSyncError
from megacov.monitor.metrics import mismatch_metrics
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import from_last_stage
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, join


def check_mismatch(inputs: Sequence[TokenInputs], groups: ParallelGroups, *, max_mismatch: float | None) -> None:
    """Refuse a rollout batch whose log-probs by the servers are far from the trainer's.

    This finds what no server reports: a tensor under a name that its model does not have, which SGLang leaves out with
    a reply of success, another model, or another temperature.

    Collectives: on the last stage, dp_cp: those of `mismatch_metrics`; then those of `from_last_stage`.

    Args:
        inputs: of micro-batches of this rank, with the trainer's log-probs; empty off the last stage.
        groups: of this rank.
        max_mismatch: largest mean of |rollout log_prob - trainer's log_prob| over all loss tokens, in nats; None allows
            all, and a mean that is not a number is left to the check of gradients.

    Raises:
        WeightSyncError: it is larger; on every rank.
    """
    if max_mismatch is None:
        return
    found = 0.0
    if groups.is_last_stage:
        own, rollout, mask = (join(inputs, name) for name in ("trainer_log_probs", "rollout_log_probs", "loss_mask"))
        found = float(mismatch_metrics(own, rollout, mask, group=groups.dp_cp)["rollout/mismatch_k1_abs"])
    found = from_last_stage(found, groups)
    if found > max_mismatch:
        raise WeightSyncError(
            f"The rollout servers' log-probs differ by {found:.3g} nats a token from the trainer's, and "
            f"weight_sync.max_mismatch is {max_mismatch:g}: the servers hold other weights or sample otherwise; see "
            "that they serve model.path with the same temperature, or set weight_sync.max_mismatch higher."
        )
