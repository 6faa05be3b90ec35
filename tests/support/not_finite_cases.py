"""Optimizer steps with a value that is not finite on the last rank only, as tests run them on ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megacov.errors import NumericsError
from megacov.megatron.policy import Policy
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.metrics import collect_metrics
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.not_finite import SkippedUpdates
from megacov.trainer.state import TrainState
from megacov.trainer.step import run_updates
from tests.support.policies import (
    CLIP_COV,
    GRPO,
    KL_COV,
    KL_COV_WITH_TERMS,
    TINY_POLICY,
    laid_out_ranks,
    make_policy,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)

# Tensor, pipeline, context; the remaining dimension is data parallel.
LAYOUTS = {2: {"DP2": (1, 1, 1), "CP2": (1, 1, 2)}, 4: {"TP2 PP2": (2, 2, 1), "DP2 PP2": (1, 2, 1)}}
SIZES = {name: sizes for layouts in LAYOUTS.values() for name, sizes in layouts.items()}
ALGORITHMS = {
    "grpo": GRPO,
    "kl_cov": KL_COV_WITH_TERMS,
    "deferred": replace(KL_COV_WITH_TERMS, defers=True),
    "correction": replace(KL_COV_WITH_TERMS, corrects=True),
    "clip_cov": CLIP_COV,
    "old": replace(KL_COV, log_probs="old"),
    "rollout_batch": replace(KL_COV, scope="rollout_batch"),
    "micro_batch": replace(KL_COV, scope="micro_batch"),
}


def poisoned(planned: MiniBatch, field: str) -> tuple[MiniBatch, int]:
    """The mini-batch with one field replaced for the tokens of one sample in one micro-batch; and the sample."""
    inputs = list(planned.inputs)
    index = next(i for i, part in enumerate(inputs) if part.kept_mask.any())
    part = inputs[index]
    sample = int(part.sample_index[part.kept_mask][0])
    # The old log-probs are the trainer's own here, which are two fields of the same values.
    fields = ("old_log_probs", "trainer_log_probs") if field == "old_log_probs" else (field,)
    is_bad = part.sample_index == sample
    bad = {name: torch.where(is_bad, math.nan, getattr(part, name)) for name in fields}
    inputs[index] = replace(part, **bad)
    return replace(planned, inputs=inputs), sample


def poison(
    policy: Policy, updates: Sequence[MiniBatch], which: Sequence[int], field: str
) -> tuple[list[MiniBatch], list[int]]:
    """The same updates, of which some have a poisoned sample on the last rank alone; and these samples."""
    result, samples = list(updates), []
    if policy.groups.world_rank == policy.groups.world_size - 1:
        for i in which:
            result[i], sample = poisoned(updates[i], field)
            samples.append(sample)
    return result, samples


def plan(policy: Policy, algorithm: str) -> list[MiniBatch]:
    settings = step_settings(policy, num_updates=4, micro_batch_tokens=24)
    return prepare_mini_batches(policy, make_rollout_batch(), ALGORITHMS[algorithm], settings)


def go(
    policy: Policy,
    updates: Sequence[MiniBatch],
    algorithm: str,
    *,
    limit: int = 3,
    state: TrainState | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Run the optimizer steps and return this rank's results."""
    state, before = state or TrainState(), weights(policy)
    batch = make_rollout_batch()
    skipped = SkippedUpdates(state, policy.groups, max_in_a_row=limit, log_folder=folder, batch=batch)
    sentence, outcomes = None, []
    try:
        outcomes = run_updates(
            policy,
            updates,
            ALGORITHMS[algorithm],
            clock=StepClock(),
            skipped=skipped,
        )
    except NumericsError as error:
        sentence = str(error)
    return {
        "sentence": sentence,
        "outcomes": outcomes,
        "applied": [outcome.result.is_applied for outcome in outcomes],
        "lr": [outcome.result.lr for outcome in outcomes],
        "in_a_row": state.skipped_in_a_row,
        "weights": weights(policy),
        "moved": not equal(before, weights(policy)),
        "gradients": {float(buffer.grad_data.abs().max()) for chunk in policy.chunks for buffer in chunk.buffers},
    }


def weights(policy: Policy) -> list[Tensor]:
    """Copies of the weights of this rank."""
    return [parameter.detach().clone() for chunk in policy.chunks for parameter in chunk.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def left_out(
    sizes: tuple[int, int, int], algorithm: str, position: int, field: str, experts: str = ""
) -> dict[str, Any]:
    """One poisoned optimizer step; then one among four; and the other three, by a policy that never saw it.

    experts: folder of a model whose experts are split over all ranks; None for the tiny policy.
    """
    tensor, pipeline, context = sizes
    path, expert = (Path(experts), dist.get_world_size()) if experts else (TINY_POLICY, 1)
    with laid_out_ranks(tensor, pipeline, context=context, expert=expert) as groups:
        policies = [make_policy(groups, path=path, with_reference=True) for _ in range(2)]
        updates = plan(policies[0], algorithm)
        bad, _ = poison(policies[0], updates, [position], field)
        alone = go(policies[0], bad[position : position + 1], algorithm)
        found = go(policies[0], bad, algorithm)
        others = [update for i, update in enumerate(updates) if i != position]
        clean = go(policies[1], others, algorithm)
    skipped = found["outcomes"][position].result
    return {
        "applied": found["applied"],
        "in_a_row": found["in_a_row"],
        "same_weights": equal(found["weights"], clean["weights"]),
        "moved": clean["moved"],
        "same_rates": [lr for i, lr in enumerate(found["lr"]) if i != position] == clean["lr"],
        "alone": (alone["applied"], alone["moved"], alone["gradients"]),
        "grad_norm": skipped.grad_norm,
    }


def stopped(sizes: tuple[int, int, int], algorithm: str, field: str, folder: str) -> dict[str, Any]:
    """The first two optimizer steps are poisoned, and only one may be left out."""
    with laid_out_ranks(*sizes[:2], context=sizes[2]) as groups:
        policy = make_policy(groups, with_reference=True)
        bad, samples = poison(policy, plan(policy, algorithm), [0, 1], field)
        path = Path(folder)
        found = go(policy, bad, algorithm, limit=1, state=TrainState(step=6, update=24), folder=path)
    return {**{name: found[name] for name in ("sentence", "moved", "in_a_row", "gradients")}, "samples": samples}


def in_backward(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """The gradient of one micro-batch overflows on the last rank, and no loss shows it."""
    with laid_out_ranks(*sizes[:2], context=sizes[2]) as groups:
        policy = make_policy(groups)
        updates = plan(policy, "grpo")
        hooks = []

        def spoil(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: gradient * 1e38 * 1e38)

        if groups.world_rank == groups.world_size - 1:
            layers = policy.chunks[0].module.decoder.layers
            hooks.append(layers[0].register_forward_hook(spoil))
        found = go(policy, updates[:1], "grpo", limit=0)
        for hook in hooks:
            hook.remove()
        after = go(policy, updates[1:2], "grpo", limit=0)
    return {"sentence": found["sentence"], "moved": found["moved"], "then": after["applied"]}


def measured(algorithm: str, which: Sequence[int], field: str) -> list[dict[str, float]]:
    """Metrics of a step with poisoned optimizer steps."""
    with laid_out_ranks(1, 1) as groups:
        policy = make_policy(groups, with_reference=True)
        bad, _ = poison(policy, plan(policy, algorithm), which, field)
        found = go(policy, bad, algorithm, limit=9)
        metrics, histogram = collect_metrics(
            bad,
            found["outcomes"],
            ALGORITHMS[algorithm],
            groups,
            num_samples=16,
            is_logged=True,
            with_histogram=True,
        )
    norms = [outcome.result.grad_norm for outcome in found["outcomes"] if outcome.result.is_applied]
    return [metrics, {"norm": sum(norms) / max(1, len(norms)), "histogram": float(histogram is not None)}]


def spoil_later_update(algorithm: str, field: str) -> tuple[list[str], list[bool]]:
    """What is found in a later update with a NaN on the last rank, and which updates are applied."""
    with laid_out_ranks(1, 1) as groups:
        policy = make_policy(groups, with_reference=True)
        bad, _ = poison(policy, plan(policy, algorithm), [2], field)
        found = go(policy, bad, algorithm)
    return [repr(finding) for outcome in found["outcomes"] for finding in outcome.findings], found["applied"]


def spoiled_policy() -> dict[str, Any]:
    """A weight is NaN, as after a bad load, and so every log-prob on every rank."""
    with laid_out_ranks(1, 1) as groups:
        policy = make_policy(groups)
        with torch.no_grad():
            policy.chunks[0].module.decoder.final_layernorm.weight[0] = math.nan
        return {"sentence": go(policy, plan(policy, "rollout_batch"), "rollout_batch")["sentence"]}


def one_of_them(name: str, *arguments: Any) -> Any:
    """Dispatch by name, so that all functions share one start of the ranks."""
    functions = (left_out, stopped, in_backward, measured, spoiled_policy)
    return {function.__name__: function for function in functions}[name](*arguments)
