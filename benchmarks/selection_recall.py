"""How many of the globally selected tokens a selection in each micro-batch finds, and how much layouts agree.

The tokens are synthetic; docs/selection.md describes them. Run: python -m benchmarks.selection_recall
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from benchmarks.selection_recall_data import Batch, chunks, describe, gather, layout, make_batch
from benchmarks.selection_recall_figure import Series, write_figure
from megacov.ops import covariance
from megacov.selection import select_clip_cov, select_kl_cov
from megacov.selection.clip_cov import band

DP_SIZES, MICRO_BATCH_SIZES = (1, 2, 4, 8), (4, 8, 16, 32)
RATIOS = {"KL-Cov 2e-4 (32B)": 2e-4, "KL-Cov 2e-3 (7B)": 2e-3}
BAND, PICKS = "Clip-Cov band (1, 5)", "Clip-Cov picks 2e-4"


def clip_cov_band(cov: Tensor, loss_mask: Tensor, token_ids: Tensor) -> Tensor:
    """The tokens from which Clip-Cov draws; on a first update PPO's clip cuts none."""
    return band(cov, loss_mask, loss_mask, lower=1.0, upper=5.0)


def clip_cov_picks(cov: Tensor, loss_mask: Tensor, token_ids: Tensor) -> Tensor:
    """The tokens that Clip-Cov draws; here a token has the same random number in every layout."""
    return select_clip_cov(
        cov, loss_mask, loss_mask, token_ids, ratio=2e-4, lower=1.0, upper=5.0, seed=0, update=0, group=None
    )


Choose = Callable[[Tensor, Tensor, Tensor], Tensor]
"""fn(cov, loss_mask, token_ids) -> bool mask, all [t]."""
METHODS: dict[str, Choose] = {
    # Among equal covariances too, as in a micro-batch of one sequence, so that each micro-batch takes its share.
    **{
        name: partial(select_kl_cov, ratio=ratio, group=None, selects_among_equals=True)
        for name, ratio in RATIOS.items()
    },
    BAND: clip_cov_band,
    PICKS: clip_cov_picks,
}


def covariances(batch: Batch, parts: Sequence[Tensor]) -> Tensor:
    """Covariance of each token with the means of its own micro-batch; global if there is one micro-batch.

    Args:
        batch: tokens of an optimizer step.
        parts: indices of the tokens of each micro-batch.

    Returns:
        [t] float32, in the order of the batch.
    """
    cov = torch.zeros_like(batch.log_probs)
    for ids in parts:
        loss_mask = torch.ones(len(ids), dtype=torch.bool)
        cov[ids] = covariance(batch.log_probs[ids], batch.advantages[ids], loss_mask, group=None)
    return cov


def select(cov: Tensor, parts: Sequence[Tensor], choose: Choose) -> Tensor:
    """Choose in each micro-batch separately, with a quota for each; globally if there is one micro-batch.

    Args:
        cov: [t] float32 covariances by which tokens are chosen.
        parts: indices of the tokens of each micro-batch.
        choose: method of selection.

    Returns:
        [t] bool, in the order of the batch.
    """
    selected = torch.zeros(len(cov), dtype=torch.bool)
    for ids in parts:
        selected[ids] = choose(cov[ids], torch.ones(len(ids), dtype=torch.bool), ids)
    return selected


def published_kl_cov(batch: Batch, parts: Sequence[Tensor], ratio: float) -> Tensor:
    """Selection per micro-batch in the arithmetic of the published code: float32 means and torch.topk; [t] bool."""
    selected = torch.zeros(len(batch.log_probs), dtype=torch.bool)
    for ids in parts:
        log_probs, advantages = batch.log_probs[ids], batch.advantages[ids]
        cov = (log_probs - log_probs.mean()) * (advantages - advantages.mean())
        selected[ids[cov.topk(max(1, int(ratio * len(ids)))).indices]] = True
    return selected


def recall(found: Tensor, wanted: Tensor) -> float:
    """Share of the wanted tokens that were found; with swapped arguments, the precision."""
    return float((found & wanted).sum() / wanted.sum().clamp(min=1))


def jaccard(one: Tensor, other: Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


def measure(batch: Batch, counts: Sequence[int], *, sort: bool) -> dict[str, list[list[float]]]:
    """Compare local with global selection of one batch.

    Args:
        batch: tokens of an optimizer step.
        counts: numbers of micro-batches; all micro-batches have the same number of sequences.
        sort: whether to assign sequences by length, and not in data order.

    Returns:
        By method, for each count: recall, precision, picks / quota, recall of local quotas with global means, and
        recall of the published arithmetic (NaN for Clip-Cov).
    """
    num_sequences = len(batch.lengths)
    everything = gather(batch, [range(num_sequences)])
    global_cov = covariances(batch, everything)
    wanted = {name: select(global_cov, everything, choose) for name, choose in METHODS.items()}
    rows: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for count in counts:
        size = num_sequences // count
        parts = gather(batch, layout(batch, 1, size) if sort else chunks(range(num_sequences), size))
        cov = covariances(batch, parts)
        for name, choose in METHODS.items():
            target, local = wanted[name], select(cov, parts, choose)
            row = [recall(local, target), recall(target, local), float(local.sum() / target.sum())]
            row.append(recall(select(global_cov, parts, choose), target))
            published = name in RATIOS and recall(published_kl_cov(batch, parts, RATIOS[name]), target)
            rows[name].append([*row, published if name in RATIOS else float("nan")])
    return rows


def print_table(title: str, counts: Sequence[int], by_seed: Sequence[list[list[float]]]) -> Series:
    """Print means over seeds, a line for each number of micro-batches. Returns the recalls."""
    print(f"\n{title}\nmicro-batches  recall    sd  precision  picks/quota  with global means  published code")
    series = {}
    for count, rows in zip(counts, zip(*by_seed, strict=True), strict=True):
        series[count] = [row[0] for row in rows]
        spread = stdev(series[count]) if len(rows) > 1 else 0.0
        found, precision, picked, quotas_only, published = (mean(column) for column in zip(*rows, strict=True))
        line = f"{count:13d} {found:7.2f} {spread:5.2f} {precision:10.2f} {picked:12.2f} {quotas_only:18.2f}"
        print(line + (f" {published:15.2f}" if published == published else f" {'-':>15s}"))
    return series


def compare_layouts(batch: Batch, *, as_one: bool) -> dict[str, Tensor]:
    """Jaccard overlap of the selections of each two layouts.

    Args:
        batch: tokens of an optimizer step.
        as_one: whether to select globally, over the tokens in the order in which each layout visits them.

    Returns:
        Overlaps [layouts, layouts] float by method.
    """
    masks: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    for dp_size in DP_SIZES:
        for micro_batch_size in MICRO_BATCH_SIZES:
            parts = gather(batch, layout(batch, dp_size, micro_batch_size))
            parts = [torch.cat(parts)] if as_one else parts
            cov = covariances(batch, parts)
            for name, choose in METHODS.items():
                masks[name].append(select(cov, parts, choose))
    return {
        name: torch.tensor([[jaccard(one, other) for other in found] for one in found]) for name, found in masks.items()
    }


def main() -> None:
    """Print the tables and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/figures/selection_recall.png"))
    options = parser.parse_args()
    batches = [make_batch(seed) for seed in range(options.seeds)]
    describe(batches)
    counts = [1 << i for i in range(len(batches[0].lengths).bit_length())]
    curves: dict[str, dict[str, Series]] = {}
    for order, sort in (("in data order", False), ("sorted by length", True)):
        by_seed = [measure(batch, counts, sort=sort) for batch in batches]
        tables = {name: [rows[name] for rows in by_seed] for name in METHODS}
        curves[order] = {name: print_table(f"{name}, {order}", counts, tables[name]) for name in METHODS}
    names = [f"{dp} x {size}" for dp in DP_SIZES for size in MICRO_BATCH_SIZES]
    different = ~torch.eye(len(names), dtype=torch.bool)
    print(f"\nOverlap of the selections of two layouts, of {len(names)}: DP {DP_SIZES} x sequences {MICRO_BATCH_SIZES}")
    local, merged = ([compare_layouts(batch, as_one=as_one) for batch in batches] for as_one in (False, True))
    for name in METHODS:
        here, there = (torch.stack([overlap[name][different] for overlap in found]) for found in (local, merged))
        print(f"{name:21s} local: mean {here.mean():.2f}, from {here.min():.2f} to {here.max():.2f}; ", end="")
        print(f"global: from {there.min():g} to {there.max():g}")
    overlap = torch.stack([found[next(iter(RATIOS))] for found in local]).mean(0)
    # The picks of Clip-Cov are only in the table, because their overlap depends on the random numbers of a code base.
    drawn = {order: {name: by_method[name] for name in (*RATIOS, BAND)} for order, by_method in curves.items()}
    write_figure(drawn, overlap.tolist(), names, path=options.output)


if __name__ == "__main__":
    main()
