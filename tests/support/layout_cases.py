"""One rollout batch trained on in any parallel layout, and how far the result is from that of one rank.

Used by the tests (a covering subset) and by `benchmarks.layout_invariance` (the whole grid).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacov.megatron.policy import Policy
from megacov.monitor.covariance_metrics import covariance_metrics
from megacov.ops import covariance
from megacov.selection import select_high_entropy, selection_margin
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.clock import StepClock
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.theorem import TheoremCheck
from megacov.trainer.optimizer_step.token_inputs import join
from megacov.trainer.optimizer_step.token_report import report_tokens
from megacov.trainer.optimizer_step.update import UpdateOutcome
from megacov.trainer.step import run_updates
from megacov.types import RolloutBatch
from tests.support.layout_algorithms import ALGORITHMS, FAR, LOSS_ALGORITHMS, reference_of
from tests.support.layout_control import after_a_step
from tests.support.layout_difference import Difference, compare, merge
from tests.support.policies import (
    ADAM,
    FLOAT32,
    laid_out_ranks,
    make_policy,
    make_qwen2,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

NUM_UPDATES = 3
# At most, on two busy cores; about 2 and 1 are usual.
SECONDS_PER_LAYOUT, SECONDS_PER_ALGORITHM = 40, 15
ONE_SEQUENCE, SOME, ALL = 1, 64, 4096


@dataclass(frozen=True)
class Layout:
    """How training is laid over ranks and micro-batches. `tokens` are those of a micro-batch, at most.

    mixed: samples are drawn at two temperatures.
    fused: passes without gradient hold no logits.
    """

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
    mixed: bool = False
    fused: bool = False

    @property
    def reference(self) -> Layout:
        """One rank that holds everything in one padded micro-batch."""
        return Layout(tied=self.tied, dtype=self.dtype, mixed=self.mixed)

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
        extras = [
            name for name in ("tied", "mixed", "fused", "recompute") if getattr(self, name) not in (False, "none")
        ]
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
        fused_output=layout.fused,
    )
    path, sizes = Path(folder, "tied" if layout.tied else "untied"), (layout.tensor, layout.pipeline)
    with laid_out_ranks(*sizes, context=layout.context, virtual_pipeline=layout.virtual) as groups:
        return {
            name: train_one(
                make_policy(
                    groups,
                    path=path,
                    model=model,
                    adam=FAR if reference_of(name) in LOSS_ALGORITHMS else ADAM,
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
    batch = make_batch()
    if layout.mixed:
        batch = replace(batch, temperatures=torch.tensor([0.6, 1.3, 0.6], dtype=torch.float64).repeat_interleave(4))
    algorithm = after_a_step(policy, batch, algorithm, settings)
    updates = prepare_mini_batches(policy, batch, algorithm, settings)
    check = _make_check(policy, updates[0], layout) if algorithm == ALGORITHMS["kl_cov"] else None
    outcomes = run_updates(policy, updates, algorithm, clock=StepClock(), check=check)
    result = {
        "theorem": {} if check is None else check.metrics(),
        "weights": dict(policy.hf_weights()),
        "grad_norms": [outcome.result.grad_norm for outcome in outcomes],
        "token_report": _token_report(updates, outcomes, batch, policy),
    }
    if policy.groups.is_last_stage:
        found = _of_tokens(updates, outcomes, algorithm, policy.groups.dp_cp)
        if policy.groups.tp_rank == 0:
            result |= found
    return result


def _token_report(
    updates: Sequence[MiniBatch], outcomes: Sequence[UpdateOutcome], batch: RolloutBatch, policy: Policy
) -> dict[str, Tensor]:
    """What all ranks are told of single tokens; the samples include the empty one and the one without loss."""
    shown, size = [0, 3, 5, 6, 11], policy.shape.vocab_size
    report = report_tokens(updates, outcomes, batch, policy.groups, shown=shown, vocab_size=size)
    assert report.values is not None and report.vocabulary is not None
    assert report.values.shape == (6, int(batch.response_lengths[shown].sum()))
    rows: dict[str, list[float]] = {}
    for tag, value in report.metrics.items():  # by quantity: a mean of one class may be near 0
        rows.setdefault(tag[: tag.index("_", tag.index("/"))], []).append(value)
    means = {name: torch.tensor([row], dtype=torch.float64) for name, row in rows.items()}
    return means | {"values": report.values, "vocabulary": torch.stack(list(report.vocabulary))}


def _make_check(policy: Policy, mini_batch: MiniBatch, layout: Layout) -> TheoremCheck | None:
    """Only where the measured micro-batches are the whole mini-batch, and so hold the same tokens in every layout."""
    if layout.tokens != ALL:
        return None
    number = len(mini_batch.micro_batches)
    statistics = policy.log_probs(mini_batch.micro_batches, num_with_sums=number)
    return TheoremCheck(policy, mini_batch, statistics, num_micro_batches=number, with_gradient=True)


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
        if algorithm.loss.name in ("m2po", "bapo", "steer", "lp_reg"):  # whose line is no score of a token
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
        "statistics": [float(value) for value in statistics.values()] + _found(outcomes),
        "losses": [sum(float(output.loss) for output in outcome.result.outputs) for outcome in outcomes],
        "loss_terms": [
            float((join(planned.inputs, "policy_advantages").abs() * join(planned.inputs, "token_weights")).sum())
            for planned in updates
        ],
        "metrics": [
            sum(float(output.metrics[name]) for output in outcome.result.outputs)
            for outcome in outcomes
            for name in sorted(outcome.result.outputs[0].metrics)
        ],
        "loss_tokens": [int(join(planned.inputs, "loss_mask").sum()) for planned in updates],
    }


def _found(outcomes: Sequence[UpdateOutcome]) -> list[float]:
    """What the selection of each optimizer step says of itself; 0 for what it does not know."""
    selections = [outcome.selection for outcome in outcomes if outcome.selection is not None]
    return [float(value.nan_to_num(0.0)) for chosen in selections for value in chosen.found.values()]


def _to_band_edge(cov: Tensor, algorithm: Algorithm) -> float:
    """How near a token is to becoming, or no longer being, one that Clip-Cov draws from."""
    edges = [algorithm.selection_hyperparameters[name] for name in ("lower", "upper")]
    return min((float((cov - edge).abs().min()) for edge in edges if len(cov)), default=math.inf)


def run_layouts(
    layouts: Sequence[Layout], folder: Path, names_of: Callable[[Layout], Sequence[str]] = lambda layout: [*ALGORITHMS]
) -> dict[Layout, dict[str, Difference]]:
    """Train in every layout, one world of ranks for each number of them, and compare by algorithm with one rank."""
    make_models(folder)
    names = {layout: tuple(names_of(layout)) for layout in layouts}
    references: dict[Layout, tuple[str, ...]] = {}
    for layout in layouts:
        needed = tuple(reference_of(name) for name in names[layout])
        references[layout.reference] = tuple(dict.fromkeys(references.get(layout.reference, ()) + needed))
    results = {}
    for num_ranks in sorted({1, *(layout.num_ranks for layout in layouts)}):
        own = {layout: names[layout] for layout in layouts if layout.num_ranks == num_ranks}
        cases = own | references if num_ranks == 1 else own
        if num_ranks == 1:  # a reference may be one of the layouts
            cases = {layout: tuple(dict.fromkeys(own.get(layout, ()) + named)) for layout, named in cases.items()}
        work = [(layout, str(folder), named) for layout, named in cases.items()]
        deadline_s = 60 + SECONDS_PER_LAYOUT * len(work) + SECONDS_PER_ALGORITHM * sum(map(len, cases.values()))
        outcomes = run_cases(train, work, world_size=num_ranks, deadline_s=deadline_s)
        for (layout, named), by_rank in zip(cases.items(), outcomes, strict=True):
            results[layout] = {name: merge([rank[name] for rank in by_rank]) for name in named}
    return {
        layout: {
            name: compare(results[layout][name], results[layout.reference][reference_of(name)])
            for name in names[layout]
        }
        for layout in layouts
    }
