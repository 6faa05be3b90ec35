"""One rollout batch trained on in any parallel layout, and how far the result is from that of one rank.

Used by the tests (a covering subset) and by `benchmarks.layout_invariance` (the whole grid).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacov.losses import LOSSES
from megacov.megatron.policy import Policy
from megacov.monitor.covariance_metrics import covariance_metrics
from megacov.ops import covariance
from megacov.selection import select_high_entropy, selection_margin
from megacov.trainer.algorithm import Algorithm, EntropyMask, RolloutCorrection
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.token_inputs import join
from megacov.trainer.optimizer_step.update import UpdateOutcome
from megacov.trainer.step import run_updates
from megacov.types import RolloutBatch
from tests.support.losses import layout_hyperparameters_of
from tests.support.policies import (
    ADAM,
    CLIP_COV,
    FLOAT32,
    GRPO,
    KL_COV,
    KL_COV_WITH_TERMS,
    laid_out_ranks,
    make_policy,
    make_qwen2,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

NUM_UPDATES = 3
QUANTITIES = ("losses", "grad_norms", "metrics", "statistics")
SECONDS_PER_LAYOUT = 40  # at most, on two busy cores; about 6 are usual
ONE_SEQUENCE, SOME, ALL = 1, 64, 4096
# Which tokens count is settled among all ranks.
GLOBAL_ALGORITHMS = {
    "kl_cov": KL_COV_WITH_TERMS,
    "clip_cov": replace(CLIP_COV, aggregation="sequence_mean_token_mean"),
    # The bounds let some of the sequences in, and none is near them.
    "high_entropy": replace(
        GRPO,
        entropy_mask=EntropyMask("high", 0.2),
        rollout_correction=RolloutCorrection("sequence_mean", "mask", 0.035, 2.0),
        denominator="kept",
    ),
}


def _algorithm_of(name: str) -> Algorithm:
    base = KL_COV if LOSSES[name].needs_selection else GRPO
    aggregation = "sequence_mean_token_mean" if LOSSES[name].needs_sequence_sums else "token_mean"
    return replace(
        base, loss=LOSSES[name], loss_hyperparameters=layout_hyperparameters_of(name), aggregation=aggregation
    )


# Every registered loss that is not above.
LOSS_ALGORITHMS = {name: _algorithm_of(name) for name in LOSSES if name not in GLOBAL_ALGORITHMS}
ALGORITHMS = GLOBAL_ALGORITHMS | LOSS_ALGORITHMS
# Far enough that ratios leave the ranges of LAYOUT_HYPERPARAMETERS within three updates.
FAR = replace(ADAM, lr=3e-4)


@dataclass(frozen=True)
class Layout:
    """How training is laid over ranks and micro-batches. `tokens` are those of a micro-batch, at most."""

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
    dtype: str = "float32"

    @property
    def reference(self) -> Layout:
        """One rank that holds everything in one padded micro-batch."""
        return Layout(tied=self.tied, dtype=self.dtype)

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
        extras += ["bfloat16"] if self.dtype == "bfloat16" else []
        return ", ".join([" ".join(parts) or "1 rank", micro_batches, "packed" if self.packed else "padded", *extras])


def make_batch() -> RolloutBatch:
    """Ragged samples: one repeats another (ties), one has no loss token, one is empty, one has a long prompt.

    12 samples in 3 updates over 4 data-parallel ranks: each rank has one sample a step, so that the ranks of the empty
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


def make_models(folder: Path) -> None:
    """Four layers, so that two pipeline ranks can hold two virtual stages each."""
    for name in ("tied", "untied"):
        make_qwen2(folder / name, num_layers=4, tied=name == "tied")


def train(layout: Layout, folder: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The updates of the batch by each algorithm, from the same weights. Returns what this rank knows of the result."""
    model = replace(
        FLOAT32,
        dtype=layout.dtype,
        virtual_pipeline=layout.virtual,
        sequence_parallel=layout.sequence,
        recompute=layout.recompute,
    )
    path, sizes = Path(folder, "tied" if layout.tied else "untied"), (layout.tensor, layout.pipeline)
    with laid_out_ranks(*sizes, context=layout.context, virtual_pipeline=layout.virtual) as groups:
        return {
            name: train_one(
                make_policy(
                    groups,
                    path=path,
                    model=model,
                    adam=FAR if name in LOSS_ALGORITHMS else ADAM,
                    with_reference=ALGORITHMS[name].ref_kl_coef > 0,
                ),
                ALGORITHMS[name],
                layout,
            )
            for name in names
        }


def train_one(policy: Policy, algorithm: Algorithm, layout: Layout) -> dict[str, Any]:
    """The updates of the batch by one algorithm. Returns what this rank knows of the result."""
    settings = step_settings(policy, num_updates=NUM_UPDATES, micro_batch_tokens=layout.tokens, packed=layout.packed)
    updates = prepare_mini_batches(policy, make_batch(), algorithm, settings)
    outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
    result = {
        "weights": dict(policy.hf_weights()),
        "grad_norms": [outcome.result.grad_norm for outcome in outcomes],
    }
    if policy.groups.is_last_stage:
        found = _of_tokens(updates, outcomes, algorithm, policy.groups.dp_cp)
        if policy.groups.tp_rank == 0:
            result |= found
    return result


def _of_tokens(
    updates: Sequence[MiniBatch], outcomes: Sequence[UpdateOutcome], algorithm: Algorithm, group: Any
) -> dict[str, Any]:
    log_probs: dict[int, float] = {}
    selected: set[int] = set()
    margins = [math.inf]
    for planned, outcome in zip(updates, outcomes, strict=True):
        ids, loss_mask = join(planned.inputs, "token_ids"), join(planned.inputs, "loss_mask")
        chosen = outcome.selection
        found = join(planned.inputs, "old_log_probs") if chosen is None else torch.cat(chosen.log_probs)
        log_probs |= dict(zip(ids.tolist(), found.tolist(), strict=True))
        if chosen is not None:
            masks, scores = torch.cat(chosen.masks), torch.cat(chosen.scores)
            selected |= set(ids[masks].tolist())
        elif algorithm.entropy_mask is not None:  # with the tokens that the correction leaves
            scores = join(planned.inputs, "entropy")
            masks = select_high_entropy(scores, loss_mask, ids, ratio=0.2, group=group)
            selected |= set(ids[join(planned.inputs, "kept_mask")].tolist())
        else:
            continue
        by_rank = float(selection_margin(scores, masks, loss_mask, group=group)[1])
        margins.append(_to_band_edge(scores[loss_mask], algorithm) if algorithm.loss.name == "clip_cov" else by_rank)
    inputs = [part for planned in updates for part in planned.inputs]
    old, advantages, loss_mask = (join(inputs, name) for name in ("old_log_probs", "advantages", "loss_mask"))
    cov = covariance(old, advantages, loss_mask, group=group)
    statistics = covariance_metrics(cov, old, advantages, loss_mask, join(inputs, "token_ids"), group=group)
    return {
        "log_probs": log_probs,
        "selected": selected,
        "margin": min(margins),
        "statistics": [float(value) for value in statistics.values()],
        "losses": [sum(float(output.loss) for output in outcome.result.outputs) for outcome in outcomes],
        "metrics": [
            sum(float(output.metrics[name]) for output in outcome.result.outputs)
            for outcome in outcomes
            for name in sorted(outcome.result.outputs[0].metrics)
        ],
        "loss_tokens": [int(join(planned.inputs, "loss_mask").sum()) for planned in updates],
    }


def _to_band_edge(cov: Tensor, algorithm: Algorithm) -> float:
    """How near a token is to becoming, or no longer being, one that Clip-Cov draws from."""
    edges = [algorithm.selection_hyperparameters[name] for name in ("lower", "upper")]
    return min((float((cov - edge).abs().min()) for edge in edges if len(cov)), default=math.inf)


def merge(by_rank: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the ranks know together."""
    told = [result for result in by_rank if "selected" in result]
    return {
        "log_probs": {token: value for result in told for token, value in result["log_probs"].items()},
        "selected": set().union(*(result["selected"] for result in told)),
        **{
            name: [sum(values) for values in zip(*(result[name] for result in told), strict=True)]
            for name in ("losses", "metrics")
        },
        "loss_tokens": [result["loss_tokens"] for result in told],
        "margin": min(result["margin"] for result in told),
        "statistics": told[0]["statistics"],
        "grad_norms": by_rank[0]["grad_norms"],
        "weights": by_rank[0]["weights"],
    }


@dataclass(frozen=True)
class Difference:
    """How one algorithm in one layout differs from one rank.

    selected: tokens, 0 where the algorithm selects none; mismatches: those that one of the two selected alone.
    relative: largest difference over largest value, of losses, gradient norms, the sums of a loss's metrics (clipped
        tokens among them), covariance statistics, and each weight.
    log_prob_noise: largest absolute difference of a log-prob, nats.
    margin: from the line of the selection to the nearest token that it divides, the smaller of both.
    fewest_tokens: loss tokens of the rank that had fewest in an update.
    """

    selected: int
    mismatches: int
    relative: dict[str, float]
    log_prob_noise: float
    margin: float
    fewest_tokens: int

    @property
    def worst(self) -> float:
        """The largest relative difference."""
        return largest(self.relative.values())

    @property
    def is_near_tied(self) -> bool:
        """Whether noise could have changed the selection; a covariance moves by up to twice the log-prob here."""
        return self.margin <= 4 * self.log_prob_noise


def largest(values: Iterable[float]) -> float:
    """The largest, or NaN if one of them is; `max` would pass over a NaN."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())


def _relative(found: Sequence[float], expected: Sequence[float]) -> float:
    scale = largest(abs(value) for value in expected)
    return largest(abs(a - b) for a, b in zip(found, expected, strict=True)) / scale


def compare(found: dict[str, Any], expected: dict[str, Any]) -> Difference:
    """Two merged results of one algorithm."""
    assert found["log_probs"].keys() == expected["log_probs"].keys(), "a token is missing or too many"
    assert found["weights"].keys() == expected["weights"].keys()
    weights = [
        float((found["weights"][name] - weight).abs().max() / weight.abs().max())
        for name, weight in expected["weights"].items()
    ]
    noise = [abs(found["log_probs"][token] - value) for token, value in expected["log_probs"].items()]
    return Difference(
        selected=len(found["selected"]),
        mismatches=len(found["selected"] ^ expected["selected"]),
        relative={
            **{name: _relative(found[name], expected[name]) for name in QUANTITIES},
            "weights": largest(weights),
        },
        log_prob_noise=largest(noise),
        margin=min(found["margin"], expected["margin"]),
        fewest_tokens=min(min(counts) for counts in found["loss_tokens"]),
    )


def run_layouts(
    layouts: Sequence[Layout], folder: Path, names_of: Callable[[Layout], Sequence[str]] = lambda layout: [*ALGORITHMS]
) -> dict[Layout, dict[str, Difference]]:
    """Train in every layout, one world of ranks for each number of them, and compare by algorithm with one rank."""
    make_models(folder)
    names = {layout: tuple(names_of(layout)) for layout in layouts}
    references: dict[Layout, tuple[str, ...]] = {}
    for layout in layouts:
        references[layout.reference] = tuple(dict.fromkeys(references.get(layout.reference, ()) + names[layout]))
    results = {}
    for num_ranks in sorted({1, *(layout.num_ranks for layout in layouts)}):
        own = {layout: names[layout] for layout in layouts if layout.num_ranks == num_ranks}
        cases = own | references if num_ranks == 1 else own
        work = [(layout, str(folder), named) for layout, named in cases.items()]
        outcomes = run_cases(train, work, world_size=num_ranks, deadline_s=60 + SECONDS_PER_LAYOUT * len(work))
        for (layout, named), by_rank in zip(cases.items(), outcomes, strict=True):
            results[layout] = {name: merge([rank[name] for rank in by_rank]) for name in named}
    return {
        layout: {name: compare(results[layout][name], results[layout.reference][name]) for name in names[layout]}
        for layout in layouts
    }
