"""One optimizer step: the loss of each micro-batch of a mini-batch, forward and backward, and the step itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megacov.losses.terms import add_terms
from megacov.megatron.policy import Policy, UpdateResult
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.correction import Correction
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.not_finite import Finding, examine_losses
from megacov.trainer.optimizer_step.scope import SelectionScope
from megacov.trainer.optimizer_step.selection import Selection, concatenate
from megacov.trainer.optimizer_step.sequence_sums import add_sequence_sums
from megacov.trainer.optimizer_step.token_inputs import TokenInputs
from megacov.types import LossBatch, LossOutput


@dataclass(frozen=True)
class UpdateOutcome:
    """An optimizer step and the tokens it acted on.

    selection: None off the last stage or where none is made.
    forwards: log-probs and entropy [t] of each micro-batch under the policy that the step began with, detached; empty
        off the last stage.
    findings: this rank's micro-batches that are not finite; empty if the optimizer step was applied.
    kept_positions: as the scope's `kept_positions`.
    corrected_share: `Correction.share`; None where the gradient was not corrected.
    """

    result: UpdateResult
    selection: Selection | None
    findings: tuple[Finding, ...] = ()
    forwards: tuple[tuple[Tensor, Tensor], ...] = ()
    kept_positions: int | None = None
    corrected_share: float | None = None


class MiniBatchLoss:
    """The loss of each micro-batch of a mini-batch, as the forward-backward pass calls it on the last stage."""

    def __init__(
        self,
        mini_batch: MiniBatch,
        scope: SelectionScope,
        algorithm: Algorithm,
        *,
        selection: Selection | None,
        is_on_policy: bool,
        cp_group: ProcessGroup | None,
        is_corrected: bool = False,
    ) -> None:
        """Hold what all micro-batches share.

        Args:
            mini_batch: the optimizer step's share of the rollout batch.
            scope: selects here if its moment lies inside the optimizer step.
            algorithm: loss, added terms and their hyperparameters.
            selection: over the whole mini-batch, if it was made before the optimizer step.
            is_on_policy: whether the policy is still the old one, and not a server's. Then the detached current
                log-probs stand in for the old ones, so that the ratio is exactly 1: the log-probs of another pass
                differ by rounding, and the gradient of |d| keeps only the sign of that difference.
            cp_group: ranks that share each micro-batch, for losses that ask for sums over whole sequences.
            is_corrected: whether the pass is to be as if no token were selected.
        """
        self._mini_batch, self._scope, self._algorithm = mini_batch, scope, algorithm
        self._selection, self._is_on_policy, self._cp_group = selection, is_on_policy, cp_group
        self._is_corrected = is_corrected
        self._local: dict[int, Selection] = {}
        self.log_probs: dict[int, Tensor] = {}
        self._entropies: dict[int, Tensor] = {}

    @property
    def forwards(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Log-probs and entropy of the micro-batches in order, once every one has been through the loss."""
        return tuple((self.log_probs[index], self._entropies[index]) for index in sorted(self.log_probs))

    @property
    def selection(self) -> Selection | None:
        """The selection over the mini-batch, once every micro-batch has been through the loss."""
        return concatenate([self._local[index] for index in sorted(self._local)]) if self._local else self._selection

    def select_between_passes(self, log_probs: Sequence[Tensor], entropies: Sequence[Tensor]) -> None:
        """Let the scope select after all forwards and before the first backward.

        Collectives: those of `SelectionScope.between_passes`.

        Args:
            log_probs: [t] float32 detached of each micro-batch.
            entropies: [t] float32 nats, likewise.
        """
        self._selection = self._scope.between_passes(self._mini_batch, log_probs, entropies)

    def select(self) -> None:
        """As `SelectingLoss.select`."""
        self.select_between_passes(*([found[i] for found in self.forwards] for i in (0, 1)))

    @torch.enable_grad()
    def effect_of_selection(self, index: int) -> tuple[LossOutput, Tensor]:
        """Compare the loss of a micro-batch with and without its selection, at the log-probs of its forward.

        Collectives: for a loss that asks for sequence sums, twice those of `add_sequence_sums`.

        Args:
            index: place of the micro-batch in the mini-batch.

        Returns:
            The loss with the selection; and [2, t] its derivatives by log-probs and entropies, less those without.
        """
        assert self._selection is not None
        log_probs, entropy = (values[index].clone().requires_grad_() for values in (self.log_probs, self._entropies))
        without = self._loss(index, log_probs, entropy, None).loss
        output = self._loss(index, log_probs, entropy, self._selection.slice(index, index + 1))
        slopes = [
            torch.stack(torch.autograd.grad(loss, (log_probs, entropy), allow_unused=True, materialize_grads=True))
            for loss in (output.loss, without)
        ]
        return LossOutput(output.loss.detach(), output.metrics), slopes[0] - slopes[1]

    def __call__(self, index: int, log_probs: Tensor, entropy: Tensor) -> LossOutput:
        """The loss of one micro-batch.

        Collectives: those of `SelectionScope.in_micro_batch`; then, for a loss that asks for sequence sums, those of
        `add_sequence_sums`.
        Gradient: to log_probs, and to entropy where there is an entropy bonus.

        Args:
            index: place of the micro-batch in the mini-batch.
            log_probs: [t] float32, under the policy that is being updated.
            entropy: [t] float32 nats.

        Returns:
            Loss and metrics; the loss is NaN if anything it or the selection's scores rest on is not finite.
        """
        current = log_probs.detach()
        self.log_probs[index], self._entropies[index] = current, entropy.detach()
        if self._is_corrected:
            return self._loss(index, log_probs, entropy, None)
        return self._loss(index, log_probs, entropy, self._selected(index, current, entropy.detach()))

    def _loss(self, index: int, log_probs: Tensor, entropy: Tensor, selection: Selection | None) -> LossOutput:
        """The loss with the selection of the micro-batch alone; with None, as if no token were selected."""
        part, algorithm, current = self._mini_batch.inputs[index], self._algorithm, log_probs.detach()
        assert algorithm.select is None or self._is_corrected or selection is not None
        selected = None if algorithm.select is None else torch.zeros_like(part.kept_mask)
        scores = weights = None
        if selection is not None:
            selected, scores = selection.masks[0], selection.scores[0]
            weights = selection.weights[0] if selection.weights else None
        old = current if self._is_on_policy else part.old_log_probs
        if algorithm.loss.is_anchored_at_rollout:
            old = part.rollout_log_probs
        assert old is not None
        batch = LossBatch(
            log_probs=log_probs,
            old_log_probs=old,
            advantages=part.policy_advantages,
            kept_mask=part.kept_mask,
            token_weights=part.token_weights,
            sequence_index=part.sample_index,
            selected=selected,
            selection_weights=weights,
            entropy=entropy,
            ref_log_probs=part.ref_log_probs,
        )
        if algorithm.loss.needs_old_entropy:
            batch = replace(batch, old_entropy=entropy.detach() if self._is_on_policy else part.entropy)
        if algorithm.old_min_p is not None:
            batch = replace(batch, filtered_old_log_probs=part.filtered_old_log_probs)
        if algorithm.loss.needs_sequence_sums:
            num_sequences = self._mini_batch.samples.stop
            batch = add_sequence_sums(batch, num_sequences=num_sequences, group=self._cp_group)
        output = add_terms(
            algorithm.loss(batch, **algorithm.loss_hyperparameters),
            batch,
            entropy_coef=algorithm.entropy_coef,
            ref_kl_coef=algorithm.ref_kl_coef,
            ref_kl_estimator=algorithm.ref_kl_estimator,
            ref_kl_max_gap=algorithm.ref_kl_max_gap,
        )
        return replace(output, loss=_all_or_nothing(output.loss, current, part, old, scores, batch.old_entropy))

    def _selected(self, index: int, log_probs: Tensor, entropy: Tensor) -> Selection | None:
        """The selection of one micro-batch, or None."""
        local = self._scope.in_micro_batch(self._mini_batch, index, log_probs, entropy)
        if local is not None:
            self._local[index] = local
            return local
        return None if self._selection is None else self._selection.slice(index, index + 1)


def _all_or_nothing(loss: Tensor, log_probs: Tensor, part: TokenInputs, *others: Tensor | None) -> Tensor:
    """The loss itself, or NaN with a gradient of NaN where it, or anything that it rests on, is not finite.

    Every rank then sees that in the gradient norm, without another message. Otherwise a clamp or a mask could turn a
    NaN into a gradient of 0, and covariances of NaN would select tokens by their ids: such an update would look sound.
    """
    read = (log_probs, part.old_log_probs, part.policy_advantages, part.ref_log_probs, *others)
    is_sound = loss.detach().isfinite()
    for values in read:
        if values is not None:
            is_sound = is_sound & (values.isfinite() | ~part.kept_mask).all()
    return loss * torch.where(is_sound, 1.0, math.nan)


def run_update(
    policy: Policy,
    mini_batch: MiniBatch,
    scope: SelectionScope,
    algorithm: Algorithm,
    *,
    selection: Selection | None,
    is_on_policy: bool,
) -> UpdateOutcome:
    """Forward, backward and the optimizer's step on one mini-batch.

    Collectives: those of `Policy.update`; between and in its passes those of the scope.

    Args:
        policy: the policy, updated in place unless the gradient is not finite.
        mini_batch: the optimizer step's share of the rollout batch.
        scope: selects between the passes or in them, if that is its moment.
        algorithm: loss, added terms and their hyperparameters.
        selection: over the whole mini-batch, if it was made before.
        is_on_policy: as in `MiniBatchLoss`.

    Returns:
        The result, the selection that the loss used, and what was not finite if the optimizer step was left out.
    """
    is_corrected = scope.corrects(mini_batch, is_on_policy=is_on_policy)
    loss = MiniBatchLoss(
        mini_batch,
        scope,
        algorithm,
        selection=selection,
        is_on_policy=is_on_policy,
        cp_group=policy.groups.cp,
        is_corrected=is_corrected,
    )
    kept = scope.kept_positions(mini_batch, is_on_policy=is_on_policy)
    entropy_grad = algorithm.entropy_coef != 0
    correction = Correction(loss, mini_batch, policy.groups, entropy_grad) if is_corrected else None
    result = policy.update(
        mini_batch.micro_batches,
        loss,
        entropy_grad=entropy_grad,
        between_passes=loss.select_between_passes if kept else None,
        further_pass=correction,
    )
    if correction is not None:
        result = replace(result, outputs=correction.outputs)
    findings: tuple[Finding, ...] = ()
    if not result.is_applied:
        findings = examine_losses(mini_batch.inputs, result.outputs, loss.log_probs, loss.selection)
    share = None if correction is None else correction.share
    return UpdateOutcome(result, loss.selection, findings, loss.forwards, kept, share)
