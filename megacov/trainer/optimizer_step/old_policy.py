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


def find_old_policy(
    policy: Policy, micro_batches: Sequence[MicroBatch], algorithm: Algorithm, *, num_checked: int, num_compared: int
) -> list[TokenStatistics | None]:
    """Log-probs and entropies before the first optimizer step: of all tokens, or of the few that must be known by then.

    If the old log-probs are the server's, a pass is made over the first micro-batches alone, to compare them with the
    server's before anything is trained on, and for the check of the theorem; and none if neither is due.

    Collectives: those of `Policy.log_probs`.

    Args:
        policy: before the first optimizer step.
        micro_batches: of the whole rollout batch on this rank.
        algorithm: its `rollout_is_old` is read.
        num_checked: the first micro-batches, of which the check of the theorem wants the sums of squared probabilities.
        num_compared: the fewest that are compared with the server's.

    Returns:
        One record a micro-batch on the last pipeline stage, None without a pass; an empty list on the others.
    """
    number = max(num_checked, num_compared) if algorithm.rollout_is_old else len(micro_batches)
    found: list[TokenStatistics | None] = []
    if number > 0:
        found += policy.log_probs(micro_batches[:number], with_entropy_t1=True, num_with_sums=num_checked)
    if not policy.groups.is_last_stage:
        return []
    return found + [None] * (len(micro_batches) - number)


def with_own_forwards(
    mini_batches: Sequence[MiniBatch], outcomes: Sequence[UpdateOutcome], policy: Policy
) -> list[MiniBatch]:
    """Fill in what the optimizer steps' own forwards have found, where no pass had been made before them.

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
        is_at_t1 = policy.reader.temperature == 1.0 and mini_batch.micro_batches[0].temperatures is None
        inputs = [
            replace(part, trainer_log_probs=log_probs, entropy=entropy, entropy_t1=entropy if is_at_t1 else None)
            for part, (log_probs, entropy) in zip(mini_batch.inputs, outcome.forwards, strict=True)
        ]
        result.append(replace(mini_batch, inputs=inputs))
    return result
