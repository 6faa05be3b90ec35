"""The mini-batches of a rollout batch: what each optimizer step trains on, on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from megacov.data.packing import MicroBatchSettings, plan_micro_batches, update_ranges
from megacov.data.prefixes import Prefixes
from megacov.megatron.logits_reader import TokenStatistics
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, make_token_inputs
from megacov.types import MicroBatch, RolloutBatch


@dataclass(frozen=True)
class MiniBatch:
    """The samples that one optimizer step trains on.

    update: number of the optimizer step in the run, from 0.
    samples: rows of the rollout batch that all ranks together train on.
    micro_batches: this rank's part of them, one a forward pass.
    inputs: one record a micro-batch on the last pipeline stage; empty on the others.
    tells_itself: its own forwards are the first to tell the trainer's log-probs, as `old_policy.py` has it.
    prefixes: cuts the samples anew, for a correction.
    """

    update: int
    samples: range
    micro_batches: list[MicroBatch]
    inputs: list[TokenInputs]
    tells_itself: bool = False
    prefixes: Prefixes | None = None


def plan_mini_batches(
    batch: RolloutBatch, settings: MicroBatchSettings, *, num_updates: int, first_update: int
) -> list[MiniBatch]:
    """Cut a rollout batch into mini-batches, and each into this rank's micro-batches. Runs no forward pass.

    Args:
        batch: the rollout batch, equal on all ranks.
        settings: size and layout of micro-batches.
        num_updates: optimizer steps per rollout batch.
        first_update: number of the first of them in the run.

    Returns:
        The mini-batches in order, without token inputs.
    """
    ranges = update_ranges(len(batch.rewards), num_updates=num_updates)
    plan = plan_micro_batches(batch, settings, num_updates=num_updates)
    return [
        MiniBatch(first_update + i, samples, micro_batches, [], prefixes=Prefixes(batch, settings, samples))
        for i, (samples, micro_batches) in enumerate(zip(ranges, plan, strict=True))
    ]


def all_micro_batches(mini_batches: Sequence[MiniBatch]) -> list[MicroBatch]:
    """The micro-batches of all mini-batches, in order, for one pass through the pipeline."""
    return list(chain.from_iterable(mini_batch.micro_batches for mini_batch in mini_batches))


def all_inputs(mini_batches: Sequence[MiniBatch]) -> list[TokenInputs]:
    """The token inputs of all mini-batches, in order; empty off the last pipeline stage."""
    return list(chain.from_iterable(mini_batch.inputs for mini_batch in mini_batches))


def with_token_inputs(
    mini_batches: Sequence[MiniBatch],
    batch: RolloutBatch,
    old: Sequence[TokenStatistics | None],
    reference: Sequence[Tensor] | None,
    *,
    advantages: Tensor,
    device: torch.device,
    rollout_is_old: bool = False,
) -> list[MiniBatch]:
    """Add what the losses need to know about each token, once the forward-only passes have run.

    Args:
        mini_batches: as planned.
        batch: the rollout batch they were planned for.
        old: statistics of the policy before the first optimizer step, one a micro-batch, None where no pass was made;
            empty off the last pipeline stage.
        reference: [t] log-probs of the reference policy, one a micro-batch; None without a reference KL.
        advantages: [n] float32.
        device: of the policy.
        rollout_is_old: whether the server's log-probs are the old ones.

    Returns:
        The same mini-batches; unchanged off the last pipeline stage.
    """
    if not old:
        return list(mini_batches)
    found, references = iter(old), None if reference is None else iter(reference)
    return [
        replace(
            mini_batch,
            inputs=make_token_inputs(
                batch,
                mini_batch.micro_batches,
                [next(found) for _ in mini_batch.micro_batches],
                None if references is None else [next(references) for _ in mini_batch.micro_batches],
                advantages=advantages,
                device=device,
                rollout_is_old=rollout_is_old,
            ),
        )
        for mini_batch in mini_batches
    ]
