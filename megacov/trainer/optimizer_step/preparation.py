"""All that comes between the rollout and the first optimizer step."""

from __future__ import annotations

from dataclasses import replace

from megacov.data.packing import MicroBatchSettings
from megacov.megatron.logits_reader import TokenStatistics
from megacov.megatron.policy import Policy
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.mini_batch import (
    MiniBatch,
    all_inputs,
    all_micro_batches,
    plan_mini_batches,
    with_token_inputs,
)
from megacov.trainer.optimizer_step.mismatch import check_mismatch
from megacov.trainer.optimizer_step.old_policy import find_old_policy, first_tells_itself
from megacov.trainer.optimizer_step.weighting import weigh_tokens
from megacov.types import RolloutBatch


def prepare_updates(
    policy: Policy,
    batch: RolloutBatch,
    algorithm: Algorithm,
    micro_batches: MicroBatchSettings,
    *,
    num_updates: int,
    first_update: int,
    num_checked: int = 0,
    max_mismatch: float | None = None,
    first_is_left: bool = False,
) -> tuple[list[MiniBatch], list[TokenStatistics | None]]:
    """Cut the batch, make the passes without gradient, and weigh every token.

    Collectives: those of `find_old_policy`, with a reference KL of `Policy.reference_log_probs`, of `weigh_tokens` for
    each mini-batch, and of `check_mismatch`.

    Args:
        policy: before the first optimizer step.
        batch: the rollout batch, equal on all ranks.
        algorithm: advantages and weights.
        micro_batches: size and layout of micro-batches.
        num_updates: optimizer steps per rollout batch.
        first_update: number of the first of them in the run.
        num_checked: the first micro-batches, which the check of the theorem measures.
        max_mismatch: as in `check_mismatch`.
        first_is_left: whether the first optimizer step is left to tell about its tokens itself, where it can.

    Returns:
        The mini-batches; and what the policy says of their micro-batches, as `find_old_policy` returns it.

    Raises:
        WeightSyncError: the servers' log-probs are too far from the trainer's; on every rank.
    """
    planned = plan_mini_batches(batch, micro_batches, num_updates=num_updates, first_update=first_update)
    if algorithm.rollout_is_old:
        planned = [replace(mini_batch, tells_itself=True) for mini_batch in planned]
    elif first_is_left and num_checked == 0 and first_tells_itself(policy, algorithm, planned[0]):
        planned[0] = replace(planned[0], tells_itself=True)
    of_all, num_compared = all_micro_batches(planned), 0 if max_mismatch is None else micro_batches.count_multiple
    num_left = sum(len(mini_batch.micro_batches) for mini_batch in planned if mini_batch.tells_itself)
    old = find_old_policy(
        policy, of_all, num_left=num_left, num_checked=num_checked, num_compared=num_compared, min_p=algorithm.old_min_p
    )
    reference = policy.reference_log_probs(of_all) if algorithm.ref_kl_coef > 0 else None
    mini_batches = with_token_inputs(
        planned,
        batch,
        old,
        reference,
        advantages=algorithm.advantages(batch.rewards, batch.group_ids),
        device=policy.device,
        rollout_is_old=algorithm.rollout_is_old,
    )
    mini_batches = [weigh_tokens(mini_batch, batch, algorithm, policy.groups) for mini_batch in mini_batches]
    known = [part for part in all_inputs(mini_batches) if part.trainer_log_probs is not None]
    check_mismatch(known, policy.groups, max_mismatch=max_mismatch)
    return mini_batches, old
