"""How far a method is off if it takes the statistics of each micro-batch for those of the whole optimizer step.

A method gives each token a weight in the gradient, by a quota, a mean, an extreme or a bound over a scope.
This compares the weights of one exact global scope with those of a scope for each micro-batch, with megacov's own
functions on both sides. The tokens are synthetic (docs/selection.md). Run: python -m benchmarks.method_scope
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean

import torch
from torch import Tensor

from benchmarks.selection_recall_data import Batch, chunks, gather, make_batch
from megacov.ops import covariance
from megacov.selection import select_clip_cov, select_kl_cov
from megacov.selection.bapo import balanced_range, beyond_range
from megacov.selection.high_entropy import select_high_entropy
from megacov.selection.lp_reg import select_lp_reg
from megacov.selection.m2po import moving_away, select_m2po, squared_log_ratios
from megacov.selection.steer import entropy_changes, steer_weights

COUNTS = (1, 2, 8, 32, 64, 256)

Effect = Callable[[Batch, Tensor], Tensor]
"""fn(batch, token ids) -> [tokens] float: what the method does to each token, with these tokens as its scope."""


def kl_cov(batch: Batch, ids: Tensor) -> Tensor:
    everything = torch.ones(len(ids), dtype=torch.bool)
    cov = covariance(batch.log_probs[ids], batch.advantages[ids], everything, group=None)
    return select_kl_cov(cov, everything, ids, ratio=2e-4, group=None, selects_among_equals=True)


def clip_cov(batch: Batch, ids: Tensor) -> Tensor:
    everything = torch.ones(len(ids), dtype=torch.bool)
    cov = covariance(batch.log_probs[ids], batch.advantages[ids], everything, group=None)
    return select_clip_cov(
        cov, everything, everything, ids, ratio=2e-4, lower=1.0, upper=5.0, seed=0, update=0, group=None
    )


def high_entropy(batch: Batch, ids: Tensor) -> Tensor:
    return select_high_entropy(batch.entropy[ids], torch.ones(len(ids), dtype=torch.bool), ids, ratio=0.2, group=None)


def m2po(batch: Batch, ids: Tensor) -> Tensor:
    log_probs, old, advantages = batch.log_probs[ids], batch.old_log_probs[ids], batch.advantages[ids]
    trusted = moving_away(log_probs, old, advantages, torch.ones(len(ids), dtype=torch.bool))
    return select_m2po(squared_log_ratios(log_probs, old), trusted, threshold=0.04, group=None)[0]


def bapo(batch: Batch, ids: Tensor) -> Tensor:
    log_ratios, advantages = batch.log_probs[ids] - batch.old_log_probs[ids], batch.advantages[ids]
    everything = torch.ones(len(ids), dtype=torch.bool)
    lower, upper, _ = balanced_range(
        log_ratios,
        advantages,
        everything,
        positive_share=0.5,
        lower=(0.6, 0.9),
        upper=(1.2, 3.0),
        step=0.05,
        group=None,
    )
    return beyond_range(log_ratios, advantages, everything, lower, upper)


def steer(batch: Batch, ids: Tensor) -> Tensor:
    """By how much a token's weight is lowered."""
    log_probs, old, everything = batch.log_probs[ids], batch.old_log_probs[ids], torch.ones(len(ids), dtype=torch.bool)
    changes = entropy_changes(log_probs, old, batch.advantages[ids], batch.entropy[ids], everything)
    return 1.0 - steer_weights(changes, everything, min_weight=0.8, min_scale=0.02, group=None)[0]


def lp_reg(batch: Batch, ids: Tensor) -> Tensor:
    return select_lp_reg(
        batch.log_probs[ids],
        batch.advantages[ids],
        torch.ones(len(ids), dtype=torch.bool),
        ids,
        negative_ratio=0.005,
        positive_ratio=0.0,
        group=None,
    )


METHODS: dict[str, Effect] = {
    "KL-Cov, ratio 2e-4": kl_cov,
    "Clip-Cov, ratio 2e-4": clip_cov,
    "80/20, tokens of high entropy": high_entropy,
    "M2PO, threshold 0.04": m2po,
    "BAPO": bapo,
    "STEER": steer,
    "Lp-Reg, 0.5 % of the negative tokens": lp_reg,
}


def effects(batch: Batch, parts: Sequence[Tensor], method: Effect) -> Tensor:
    """What a method does with a scope for each part; [t] float64, in the order of the batch."""
    found = torch.zeros(len(batch.log_probs), dtype=torch.float64)
    for ids in parts:
        found[ids] = method(batch, ids).double()
    return found


def error(local: Tensor, wanted: Tensor) -> float:
    """Sum of the differences over the sum of what should be done: 0 if equal, 2 if done as much but elsewhere."""
    return float((local - wanted).abs().sum() / wanted.sum())


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    batches = [make_batch(seed) for seed in range(parser.parse_args().seeds)]
    print(f"| method | {' | '.join(str(count) for count in COUNTS)} |\n|---|{'---|' * len(COUNTS)}")
    for name, method in METHODS.items():
        cells = []
        for count in COUNTS:
            errors = []
            for batch in batches:
                everything = range(len(batch.lengths))
                wanted = effects(batch, gather(batch, [everything]), method)
                parts = gather(batch, chunks(everything, len(everything) // count))
                errors.append(error(effects(batch, parts, method), wanted))
            cells.append(f"{mean(errors):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
