"""Selection by an optimizer step's own log-probs without another forward pass over all tokens: a corrected gradient.

The loss is a sum over tokens, so gradients add. The optimizer step first goes forward and backward as if no token were
selected, which yields all current log-probs, and selects by them. What the selection changes in the derivative of the
loss by a token's log-prob is then known: it is not 0 at few tokens, for KL-Cov and Clip-Cov at the selected ones. A
second forward and backward over the sequences up to their last such token adds the rest of the gradient. Its loss is
linear in the log-probs, with these differences as coefficients, so no loss has to know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from megacov.megatron.forward_step import TokenLoss
from megacov.parallel.collectives import all_gather_bytes, broadcast_tensor
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.types import LossOutput, MicroBatch


class SelectingLoss(Protocol):
    """The loss of a mini-batch that has been through the first backward pass, on the last stage."""

    def select(self) -> None:
        """Select by the log-probs of the forwards. A collective of dp_cp."""

    def effect_of_selection(self, index: int) -> tuple[LossOutput, Tensor]:
        """The loss of a micro-batch with its selection; and [2, t] what the selection adds to its derivatives."""


@dataclass
class Correction:
    """The second pass of an optimizer step, made between its first backward pass and the sum over replicas.

    outputs: losses and metrics of the micro-batches with their selection, on the last stage.
    share: positions of the second pass over those of the optimizer step, neither with padding.
    """

    loss: SelectingLoss
    mini_batch: MiniBatch
    groups: ParallelGroups
    entropy_grad: bool
    outputs: list[LossOutput] = field(default_factory=list)
    share: float = 0.0

    def __call__(self) -> tuple[Sequence[MicroBatch], TokenLoss] | None:
        """Select, and plan the second pass.

        Collectives: on the last stage, those of the selection and of the losses; then those of `gather_tokens`.

        Returns:
            Micro-batches of this rank and their loss; None where the selection changes no derivative on any rank.
        """
        token_ids, slopes = torch.empty(0, dtype=torch.int64), torch.empty(0, 2)
        if self.groups.is_last_stage:
            self.loss.select()
            effects = [self.loss.effect_of_selection(index) for index in range(len(self.mini_batch.inputs))]
            self.outputs = [output for output, _ in effects]
            all_slopes = torch.cat([found for _, found in effects], dim=1).T
            # NaN is not 0: an optimizer step that is not finite stays so.
            changed = (all_slopes != 0).any(dim=1)
            token_ids = torch.cat([part.token_ids for part in self.mini_batch.inputs])[changed]
            slopes = all_slopes[changed]
        token_ids, slopes = gather_tokens(token_ids, slopes, self.groups)
        if len(token_ids) == 0:
            return None
        prefixes = self.mini_batch.prefixes
        assert prefixes is not None
        self.share = prefixes.share(token_ids)
        micro_batches = prefixes.micro_batches(token_ids)
        return micro_batches, _LinearLoss(micro_batches, token_ids, slopes.float(), self.entropy_grad)


@dataclass(frozen=True)
class _LinearLoss:
    """A weighted sum of log-probs and entropies; `slopes` [m, 2] are the weights of the tokens `token_ids` [m]."""

    micro_batches: Sequence[MicroBatch]
    token_ids: Tensor
    slopes: Tensor
    entropy_grad: bool

    def __call__(self, index: int, log_probs: Tensor, entropy: Tensor) -> LossOutput:
        own = self.micro_batches[index].token_ids
        place = torch.searchsorted(self.token_ids, own).clamp(max=len(self.token_ids) - 1)
        is_found = (self.token_ids[place] == own).to(log_probs.device)
        by_log_prob, by_entropy = self.slopes[place].to(log_probs.device).unbind(dim=1)
        loss = torch.where(is_found, by_log_prob * log_probs, 0.0).sum()
        if self.entropy_grad:
            loss = loss + torch.where(is_found, by_entropy * entropy, 0.0).sum()
        return LossOutput(loss, {})


def gather_tokens(token_ids: Tensor, values: Tensor, groups: ParallelGroups) -> tuple[Tensor, Tensor]:
    """Give every rank some tokens of all ranks. It waits for the device.

    Collectives: on the last stage, dp_cp: `all_gather_bytes`; then pp: `broadcast_tensor`.

    Args:
        token_ids: [own m] int64, below 2**53; ignored off the last stage. Tensor-parallel ranks hold the same.
        values: [own m, v] float32 of these tokens.
        groups: process groups of this rank.

    Returns:
        Token ids [m] in ascending order, and values [m, v] float64, on the CPU; equal on all ranks.
    """
    table = None
    if groups.is_last_stage:
        own = torch.cat([token_ids.double()[:, None], values.double()], dim=1).cpu()
        rows = b"".join(all_gather_bytes(own.numpy().tobytes(), group=groups.dp_cp))
        table = torch.frombuffer(bytearray(rows), dtype=torch.float64) if rows else own
        table = table.view(-1, own.shape[1])
        table = table[table[:, 0].argsort()]
    table = broadcast_tensor(table, src_rank=groups.pp_size - 1, group=groups.pp).cpu()
    return table[:, 0].long(), table[:, 1:]
