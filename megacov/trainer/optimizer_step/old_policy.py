"""What the trainer's own policy says of a rollout batch, where the old log-probs are its own and where a server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megacov.megatron.logits_reader import TokenStatistics
from megacov.megatron.policy import Policy
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.update import UpdateOutcome
from megacov.types import MicroBatch


def first_tells_itself(policy: Policy, algorithm: Algorithm, mini_batch: MiniBatch) -> bool:
    """Whether no pass need be made over the first optimizer step's tokens, whose own forwards have the same weights.

    They must not be needed before: by an entropy mask or reward, a rollout correction, a loss that reads old entropies
    or filtered log-probs, or a selection other than one that can be made between forwards and backwards. And the
    samples must be drawn at temperature 1, since an optimizer step finds no entropy at any other than theirs.

    Args:
        policy: its reader knows the temperature.
        algorithm: what the optimizer step needs.
        mini_batch: the first of the rollout batch.

    Returns:
        The same on all ranks; never true where the old log-probs are the server's.
    """
    selects_late = algorithm.scope == "mini_batch" and algorithm.log_probs == "current" and algorithm.defers
    is_by_entropy = algorithm.select is not None and algorithm.select.needs_entropy
    return (
        not algorithm.rollout_is_old
        and (algorithm.select is None or (selects_late and not is_by_entropy))
        and not algorithm.loss.needs_old_entropy
        and algorithm.old_min_p is None
        and algorithm.soft is None
        and algorithm.entropy_mask is None
        and algorithm.rollout_correction is None
        and _is_at_t1(policy, mini_batch)
    )


def find_old_policy(
    policy: Policy,
    micro_batches: Sequence[MicroBatch],
    *,
    num_left: int,
    num_checked: int,
    num_compared: int,
    min_p: float | None = None,
) -> list[TokenStatistics | None]:
    """Log-probs and entropies before the first optimizer step, by one pass over the micro-batches that need it.

    Where none needs it, a pass is made over the first ones alone, to compare them with the server's before anything is
    trained on, and for the check of the theorem; and none if neither is due.

    Collectives: those of `Policy.log_probs`.

    Args:
        policy: before the first optimizer step.
        micro_batches: of the whole rollout batch on this rank.
        num_left: the first micro-batches, which their own optimizer steps tell about.
        num_checked: the first micro-batches, of which the check of the theorem wants the sums of squared probabilities;
            0 unless all or none are left.
        num_compared: the fewest that are compared with the server's.
        min_p: as in `Policy.log_probs`.

    Returns:
        One record a micro-batch on the last pipeline stage, None without a pass; an empty list on the others.
    """
    number = max(num_checked, num_compared) if num_left == len(micro_batches) else 0
    passed = [*micro_batches[:number], *micro_batches[num_left:]]
    found: list[TokenStatistics | None] = []
    if passed:
        found += policy.log_probs(passed, with_entropy_t1=True, num_with_sums=num_checked, min_p=min_p)
    if not policy.groups.is_last_stage:
        return []
    return found[:number] + [None] * (num_left - number) + found[number:]


def with_own_forwards(
    mini_batches: Sequence[MiniBatch], outcomes: Sequence[UpdateOutcome], policy: Policy
) -> list[MiniBatch]:
    """Fill in what optimizer steps' own forwards have found, where their tokens were left to them.

    The tokens of the first optimizer step are then described under the policy before it, those of the second under the
    policy after the first, and so on.

    Args:
        mini_batches: the rollout batch as it was trained on.
        outcomes: one a mini-batch.
        policy: its reader says whether the samples were drawn at temperature 1. Entropies at 1 stay unknown otherwise.

    Returns:
        The same mini-batches with log-probs and entropies of the trainer; unchanged off the last pipeline stage.
    """
    result = []
    for mini_batch, outcome in zip(mini_batches, outcomes, strict=True):
        if not mini_batch.tells_itself:
            result.append(mini_batch)
            continue
        is_at_t1 = _is_at_t1(policy, mini_batch)
        inputs = [
            replace(
                part,
                old_log_probs=log_probs if part.old_log_probs is None else part.old_log_probs,
                trainer_log_probs=log_probs,
                entropy=entropy,
                entropy_t1=entropy if is_at_t1 else None,
            )
            for part, (log_probs, entropy) in zip(mini_batch.inputs, outcome.forwards, strict=True)
        ]
        result.append(replace(mini_batch, inputs=inputs))
    return result


def _is_at_t1(policy: Policy, mini_batch: MiniBatch) -> bool:
    return policy.reader.temperature == 1.0 and mini_batch.micro_batches[0].temperatures is None
