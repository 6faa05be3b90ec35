"""How much of an optimizer step a correction would go through: sequences up to their last selected token.

The tokens are those of `benchmarks.selection_recall_data`, and KL-Cov selects. Beside the share is the one that
`megacov.plan.correction` expects of selected tokens that fall evenly.
Run: python -m benchmarks.correction_share
"""

from __future__ import annotations

import torch

from benchmarks.selection_recall_data import Batch, make_batch
from megacov.ops import covariance
from megacov.plan.correction import evenly_spread_share
from megacov.selection import select_kl_cov

MEDIANS, RATIOS, SEEDS = (1200, 3098), (2e-4, 2e-3), range(5)


def share_of(batch: Batch, ratio: float) -> float:
    """Tokens up to the last selected one of each sequence, over all tokens; prompts are left out."""
    kept, token_ids = torch.ones_like(batch.log_probs, dtype=torch.bool), torch.arange(len(batch.log_probs))
    cov = covariance(batch.log_probs, batch.advantages, kept, group=None)
    selected = token_ids[select_kl_cov(cov, kept, token_ids, ratio=ratio, group=None)]
    sequence = torch.repeat_interleave(torch.arange(len(batch.lengths)), batch.lengths)[selected]
    place = selected - (batch.lengths.cumsum(0) - batch.lengths)[sequence]
    prefixes = torch.zeros_like(batch.lengths).scatter_reduce(0, sequence, place + 1, "amax")
    return float(prefixes.sum() / batch.lengths.sum())


def main() -> None:
    """Print a table in Markdown."""
    print("| median length | mean | ratio | share, mean (range) of five batches | if they fell evenly |")
    print("|---|---|---|---|---|")
    for median in MEDIANS:
        batches = [make_batch(seed, median_length=median) for seed in SEEDS]
        mean = sum(float(batch.lengths.double().mean()) for batch in batches) / len(batches)
        for ratio in RATIOS:
            shares = [share_of(batch, ratio) for batch in batches]
            even = evenly_spread_share(ratio, prompt=0, response=mean)
            print(
                f"| {median} | {mean:.0f} | {ratio:g} | {sum(shares) / len(shares):.1%} "
                f"({min(shares):.1%} to {max(shares):.1%}) | {even:.0%} |"
            )


if __name__ == "__main__":
    main()
