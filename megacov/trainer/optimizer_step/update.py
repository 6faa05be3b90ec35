"""One optimizer step: where to act, then the loss of each micro-batch, then the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megacov.losses.terms import add_terms
from megacov.megatron.policy import Policy, UpdateResult
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.not_finite import Finding, examine_loss
from megacov.trainer.optimizer_step.selection import Selection, concatenate, select_tokens
from megacov.trainer.optimizer_step.sequence_sums import make_sequence_sums
from megacov.trainer.optimizer_step.token_inputs import TokenInputs
from megacov.types import LossBatch, LossOutput, MicroBatch


@dataclass(frozen=True)
class Occasion:
    """Which optimizer step this is.

    is_first: no update has been made since the old log-probs were computed; one left out is none.
    seed: of the run.
    update: number of this optimizer step in the run.
    """

    is_first: bool
    seed: int
    update: int


@dataclass(frozen=True)
class UpdateOutcome:
    """An optimizer step and the tokens it acted on.

    selection: None off the last stage or where none is made.
    findings: what was not finite in this rank's micro-batches; only of a step that was left out.
    """

    result: UpdateResult
    selection: Selection | None
    findings: tuple[Finding, ...] = ()


def select_for_update(
    policy: Policy,
    micro_batches: Sequence[MicroBatch],
    inputs: Sequence[TokenInputs],
    algorithm: Algorithm,
    occasion: Occasion,
) -> Selection | None:
    """The selection of one optimizer step in `mini_batch` scope.

    On the first update of a rollout batch the current policy is the old one, so its log-probs are reused and no forward
    pass is made; later updates make one forward-only pass, unless the covariance is taken of the old log-probs.

    Collectives: a forward-only pass where needed (all ranks), then on the last stage those of `select_tokens`.

    Args:
        policy: the policy.
        micro_batches: of this rank, in this optimizer step.
        inputs: of the same micro-batches; empty off the last stage.
        algorithm: the resolved algorithm.
        occasion: which optimizer step this is.

    Returns:
        The selection, on the last stage.
    """
    if occasion.is_first or algorithm.log_probs == "old":
        log_probs = [part.old_log_probs for part in inputs]
    else:
        log_probs = [found.log_probs for found in policy.log_probs(micro_batches)]
    if not policy.groups.is_last_stage:
        return None
    return select_tokens(
        inputs, log_probs, algorithm, seed=occasion.seed, update=occasion.update, group=policy.groups.dp_cp
    )


def make_token_loss(
    inputs: Sequence[TokenInputs],
    selection: Selection | None,
    algorithm: Algorithm,
    occasion: Occasion,
    chosen: list[Selection],
    *,
    cp_group: ProcessGroup | None,
) -> Callable[[int, Tensor, Tensor], LossOutput]:
    """The loss of one micro-batch, as the forward-backward pass calls it.

    Collectives: cp_group: of `make_sequence_sums`; each call: in `micro_batch` scope `select_tokens`, then `with_sums`.
    Gradient: to log_probs, and to entropy where there is an entropy bonus.

    Args:
        inputs: of the micro-batches.
        selection: over all micro-batches; None where nothing is selected or where it is done here.
        algorithm: the resolved algorithm.
        occasion: which optimizer step this is. On the first, the detached current log-probs stand for the old ones:
            those of another pass differ by rounding, of which the gradient of |d| keeps the sign.
        chosen: receives the selection of each micro-batch in `micro_batch` scope.
        cp_group: ranks that share each micro-batch.

    Returns:
        (index, log_probs [t], entropy [t]) -> loss and metrics, all NaN where it or its selection's scores are.
    """
    local = algorithm.select is not None and algorithm.scope == "micro_batch"
    with_sums = make_sequence_sums(inputs, is_needed=algorithm.loss.needs_sequence_sums, group=cp_group)

    def token_loss(index: int, log_probs: Tensor, entropy: Tensor) -> LossOutput:
        part = inputs[index]
        selected = None if selection is None else selection.masks[index]
        scores = None if selection is None else selection.scores[index]
        if local:
            source = part.old_log_probs if algorithm.log_probs == "old" else log_probs.detach()
            chosen.append(
                select_tokens([part], [source], algorithm, seed=occasion.seed, update=occasion.update, group=cp_group)
            )
            selected, scores = chosen[-1].masks[0], chosen[-1].scores[0]
        batch = LossBatch(
            log_probs=log_probs,
            old_log_probs=log_probs.detach() if occasion.is_first else part.old_log_probs,
            advantages=part.policy_advantages,
            loss_mask=part.kept,
            token_weights=part.token_weights,
            sequence_index=part.sample_index,
            selected=selected,
            entropy=entropy,
            ref_log_probs=part.ref_log_probs,
        )
        output = add_terms(
            algorithm.loss(with_sums(batch), **algorithm.loss_hyperparameters),
            batch,
            entropy_coef=algorithm.entropy_coef,
            ref_kl_coef=algorithm.ref_kl_coef,
            ref_kl_estimator=algorithm.ref_kl_estimator,
        )
        return replace(output, loss=_all_or_nothing(output.loss, log_probs, part, scores))

    return token_loss


def _all_or_nothing(loss: Tensor, log_probs: Tensor, part: TokenInputs, scores: Tensor | None) -> Tensor:
    """The loss itself, or NaN with a gradient of NaN where it, or what it or its selection rests on, is not finite.

    All ranks see that in the gradient norm, without another message. Left alone, a clamp or a mask can turn a NaN into
    a gradient of 0, and covariances of NaN select tokens by their ids: such an update would look sound.
    """
    read = (log_probs.detach(), part.old_log_probs, part.policy_advantages, part.ref_log_probs, scores)
    is_sound = loss.detach().isfinite()
    for values in read:
        if values is not None:
            is_sound = is_sound & (values.isfinite() | ~part.kept).all()
    return loss * torch.where(is_sound, 1.0, math.nan)


def run_update(
    policy: Policy,
    micro_batches: Sequence[MicroBatch],
    inputs: Sequence[TokenInputs],
    selection: Selection | None,
    algorithm: Algorithm,
    occasion: Occasion,
) -> UpdateOutcome:
    """Forward, backward and optimizer step with the given selection.

    Collectives: those of `Policy.update`.

    Args:
        policy: the policy.
        micro_batches: of this rank, in this optimizer step.
        inputs: of the same micro-batches; empty off the last stage.
        selection: of `mini_batch` or `rollout_batch` scope; None otherwise.
        algorithm: the resolved algorithm.
        occasion: which optimizer step this is.

    Returns:
        The result, with the selection it used, and what was not finite if it was left out.
    """
    chosen: list[Selection] = []
    seen: dict[int, Tensor] = {}
    token_loss = make_token_loss(
        inputs,
        selection,
        algorithm,
        occasion,
        chosen,
        cp_group=policy.groups.cp,
    )

    def seen_loss(index: int, log_probs: Tensor, entropy: Tensor) -> LossOutput:
        seen[index] = log_probs.detach()
        return token_loss(index, log_probs, entropy)

    result = policy.update(micro_batches, seen_loss, entropy_grad=algorithm.entropy_coef != 0)
    selection = concatenate(chosen) if chosen else selection
    if result.is_applied:
        return UpdateOutcome(result, selection)
    return UpdateOutcome(result, selection, examine_loss(inputs, result.outputs, seen, selection))
