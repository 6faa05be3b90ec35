"""The same rollout batch under every parallel layout: the same tokens selected, the same update.

    python -m benchmarks.layout_invariance [--subset]

Trains a four-layer policy on gloo ranks of this machine with KL-Cov, Clip-Cov and high-entropy selection, in every
layout of up to four ranks: {TP 1, 2, 4} x {SP} x {PP 1, 2} x {VPP 1, 2} x {CP 1, 2} x {DP 1, 2, 4} x {micro-batches of
one sequence, some, all} x {packed, padded}. Prints a line a layout and exits with 1 if one of them differs from one
rank that holds everything. What is in the batch: `make_batch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from megacov.monitor.covariance_metrics import covariance_metrics
from megacov.ops import covariance
from megacov.selection import selection_margin
from megacov.trainer.step import PhaseClock, plan_updates, run_updates
from megacov.trainer.token_inputs import join
from megacov.types import RolloutBatch
from tests.support.policies import CLIP_COV, FLOAT32, KL_COV_WITH_TERMS, laid_out_policy, step_settings

NUM_UPDATES = 3
ONE_SEQUENCE, SOME, ALL = 1, 64, 4096
# Relative, in float32: of the loss, the gradient norm, the covariance statistics and each tensor of weights.
TOLERANCE = 1e-5
ALGORITHMS = {
    "kl_cov": KL_COV_WITH_TERMS,
    "clip_cov": replace(CLIP_COV, aggregation="sequence_mean_token_mean"),
}


@dataclass(frozen=True)
class Layout:
    """How one training step is laid over ranks and micro-batches. `tokens` are those of a micro-batch, at most."""

    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    data: int = 1
    tokens: int = ALL
    packed: bool = False
    recompute: str = "none"
    tied: bool = False

    @property
    def num_ranks(self) -> int:
        """Ranks it takes."""
        return self.tensor * self.pipeline * self.context * self.data

    def __str__(self) -> str:
        """Short, with what is 1 left out."""
        sizes = {"TP": self.tensor, "PP": self.pipeline, "VPP": self.virtual, "CP": self.context, "DP": self.data}
        parts = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        if self.sequence:
            parts.insert(1, "SP")
        micro_batches = {ONE_SEQUENCE: "one sequence", SOME: f"{SOME} tokens", ALL: "all"}[self.tokens]
        extras = [name for name in ("tied", "recompute") if getattr(self, name) not in (False, "none")]
        return "  ".join([" ".join(parts) or "1 rank", micro_batches, "packed" if self.packed else "padded", *extras])


def all_layouts() -> Iterator[Layout]:
    """The grid. Recomputation comes with micro-batches of one sequence, tied embeddings with packed ones of all.

    Yields:
        Every layout of up to four ranks; the reference first.
    """
    yield Layout()
    for tensor, pipeline, context, data in product((1, 2, 4), (1, 2), (1, 2), (1, 2, 4)):
        if tensor * pipeline * context * data > 4:
            continue
        switches = product((False, True) if tensor > 1 else (False,), (1, 2) if pipeline > 1 else (1,))
        for (sequence, virtual), tokens, packed in product(list(switches), (ONE_SEQUENCE, SOME, ALL), (True, False)):
            yield Layout(
                tensor=tensor,
                sequence=sequence,
                pipeline=pipeline,
                virtual=virtual,
                context=context,
                data=data,
                tokens=tokens,
                packed=packed,
                recompute="full" if tokens == ONE_SEQUENCE else "none",
                tied=packed and tokens == ALL,
            )


def make_batch() -> RolloutBatch:
    """Ragged samples: one repeats another (ties), one has no loss token, one is empty, in one the prompt is long.

    Returns:
        12 samples; with 3 updates over 4 data-parallel ranks each rank has one a step, so that the ranks of the empty
        and of the masked sample have no token.
    """
    generator = torch.Generator().manual_seed(11)
    prompts = torch.randint(2, 7, (12,), generator=generator)
    responses = torch.randint(3, 25, (12,), generator=generator)
    prompts[2], responses[3], responses[9] = 20, 0, 1
    tokens = torch.randint(4, 14, (12, 44), generator=generator)
    prompts[5], responses[5], tokens[5] = prompts[4], responses[4], tokens[4]
    tokens[torch.arange(44) >= (prompts + responses)[:, None]] = 0
    loss_mask = torch.arange(24) < responses[:, None]
    loss_mask[6] = False
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=prompts,
        response_lengths=responses,
        loss_mask=loss_mask,
        rollout_log_probs=-torch.rand(12, 24, generator=generator),
        group_ids=torch.arange(12) // 4,
        rewards=torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0]),
        max_response_length=24,
    )


def train(layout: Layout, folder: str) -> dict[str, Any]:
    """The updates of the batch in one layout, with each algorithm from the same weights. Runs on every rank.

    Args:
        layout: to train in.
        folder: with the models.

    Returns:
        For each algorithm what this rank knows of the selected tokens, losses, statistics and weights.
    """
    model = replace(
        FLOAT32, virtual_pipeline=layout.virtual, sequence_parallel=layout.sequence, recompute=layout.recompute
    )
    path = Path(folder, "tied" if layout.tied else "untied")
    results: dict[str, Any] = {}
    for name, algorithm in ALGORITHMS.items():
        with laid_out_policy(
            layout.tensor, layout.pipeline, context=layout.context, model=model, path=path, with_reference=True
        ) as policy:
            batch = make_batch()
            settings = step_settings(
                policy, num_updates=NUM_UPDATES, micro_batch_tokens=layout.tokens, packed=layout.packed
            )
            updates = plan_updates(policy, batch, algorithm, settings)
            outcomes = run_updates(policy, updates, algorithm, seed=0, first_update=0, clock=PhaseClock())
            weights = dict(policy.hf_weights())
            is_told = policy.groups.is_last_stage and policy.groups.tp_rank == 0
            group = policy.groups.dp_cp
            result: dict[str, Any] = {"weights": weights, "log_probs": {}, "selected": set(), "loss": [0.0] * 3}
            result["grad_norms"] = [outcome.result.grad_norm for outcome in outcomes]
            if policy.groups.is_last_stage:
                found = _token_results(updates, outcomes, group)
                result |= found if is_told else {}
        results[name] = result
    return results


def _token_results(updates: Sequence[Any], outcomes: Sequence[Any], group: Any) -> dict[str, Any]:
    log_probs, selected, margins = {}, set(), []
    for planned, outcome in zip(updates, outcomes, strict=True):
        masks, scores = torch.cat(outcome.selection.masks), torch.cat(outcome.selection.scores)
        ids, kept = join(planned.inputs, "token_ids"), join(planned.inputs, "loss_mask")
        selected |= set(ids[masks].tolist())
        log_probs |= dict(zip(ids.tolist(), torch.cat(outcome.selection.log_probs).tolist(), strict=True))
        margins.append(float(selection_margin(scores, masks, kept, group=group)[1]))
    inputs = [part for planned in updates for part in planned.inputs]
    old, advantages, kept = (join(inputs, name) for name in ("old_log_probs", "advantages", "loss_mask"))
    cov = covariance(old, advantages, kept, group=group)
    statistics = covariance_metrics(cov, old, advantages, kept, join(inputs, "token_ids"), group=group)
    return {
        "log_probs": log_probs,
        "selected": selected,
        "margins": margins,
        "statistics": {name: float(value) for name, value in statistics.items()},
        "loss": [sum(float(output.loss) for output in outcome.result.outputs) for outcome in outcomes],
    }
