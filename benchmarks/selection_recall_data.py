"""Synthetic tokens of one optimizer step, as in GRPO with binary rewards, and ways to split them into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from megacov.advantages import group_relative
from megacov.data.packing import balance
from megacov.ops import covariance

NUM_PROMPTS, NUM_SAMPLES = 32, 8
DRIFT = 0.6
"""Standard deviation of the log-ratio to the policy that drew a token of 1 nat."""
TABLE_1 = {2e-4: 5.654, 2e-3: 3.112, 2e-2: 1.385, 0.2: 0.351, 0.5: 0.152, 1.0: 0.003}
"""Share of the tokens, from the top, and their mean covariance in the paper's Table 1."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one optimizer step, sequence after sequence: lengths [n], all others [t].

    entropy: nats, of the distribution that a token was drawn from.
    old_log_probs: those of the policy that drew it, which an uncertain token leaves farthest behind.
    """

    log_probs: Tensor
    advantages: Tensor
    lengths: Tensor
    entropy: Tensor
    old_log_probs: Tensor


def make_batch(seed: int, *, num_prompts: int = NUM_PROMPTS, median_length: int = 1200) -> Batch:
    """Make synthetic tokens: GRPO advantages of binary rewards, and few uncertain tokens among many certain ones.

    Args:
        seed: seed of all random numbers.
        num_prompts: number of groups; each has some right and some wrong samples.
        median_length: median number of tokens of a right response.

    Returns:
        The batch, in which the samples of a group are neighbours.
    """
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.arange(num_prompts).repeat_interleave(NUM_SAMPLES)
    num_right = torch.randint(1, NUM_SAMPLES, (num_prompts, 1), generator=draw)
    rewards = (torch.rand(num_prompts, NUM_SAMPLES, generator=draw).argsort(1) < num_right).float().flatten()

    def effect(of_prompt: float, of_sample: float, of_wrong: float) -> Tensor:
        """A factor for each sequence: e to the power of normal effects, increased for wrong sequences."""
        by_prompt = torch.randn(num_prompts, generator=draw)[prompts]
        by_sample = torch.randn(len(prompts), generator=draw)
        return torch.exp(of_prompt * by_prompt + of_sample * by_sample) * (1 + of_wrong * (1 - rewards))

    lengths = (median_length * effect(0.3, 0.4, 0.3)).clamp(8, 8192).long()
    uncertainty = effect(0.2, 0.1, 0.05).repeat_interleave(lengths)
    # Half of the tokens are below 0.01 nats and a fifth at about 0.7.
    entropy = (0.01 * torch.exp(5 * torch.randn(len(uncertainty), generator=draw))).clamp(max=0.7) * uncertainty
    log_probs = -entropy * torch.empty_like(entropy).exponential_(generator=draw)
    advantages = group_relative(rewards, prompts).repeat_interleave(lengths)
    drift = DRIFT * entropy.sqrt() * torch.randn(entropy.shape, generator=draw)
    return Batch(log_probs, advantages, lengths, entropy, (log_probs - drift).clamp(max=0.0))


def chunks(sequences: Sequence[int], size: int) -> list[list[int]]:
    return [list(sequences[i : i + size]) for i in range(0, len(sequences), size)]


def layout(batch: Batch, dp_size: int, micro_batch_size: int) -> list[list[int]]:
    """The micro-batches of all ranks: tokens are balanced over ranks, and sequences of similar length are together."""
    ranks = balance(batch.lengths.tolist(), num_parts=dp_size)
    return [part for mine in ranks for part in chunks(mine, micro_batch_size)]


def gather(batch: Batch, micro_batches: Sequence[Sequence[int]]) -> list[Tensor]:
    """Find the tokens of micro-batches.

    Args:
        batch: tokens of an optimizer step.
        micro_batches: indices of the sequences of each micro-batch.

    Returns:
        Indices [tokens] int64 for each micro-batch, in the order of its sequences. They serve as token ids as well.
    """
    pieces = torch.arange(len(batch.log_probs)).split(batch.lengths.tolist())
    return [torch.cat([pieces[i] for i in sequences]) for sequences in micro_batches]


def describe(batches: Sequence[Batch]) -> None:
    """Print statistics of the tokens beside those that the paper reports."""
    tokens = [len(batch.log_probs) for batch in batches]
    surprise = mean(float(-batch.log_probs.mean()) for batch in batches)
    print(f"{len(batches)} batches of {len(batches[0].lengths)} sequences, {mean(tokens):.0f} tokens on average")
    covs, rare, rare_at_top = [], [], []
    for batch in batches:
        loss_mask = torch.ones(len(batch.log_probs), dtype=torch.bool)
        cov = covariance(batch.log_probs, batch.advantages, loss_mask, group=None).sort(descending=True)
        covs.append(cov.values)
        lowest = batch.advantages == batch.advantages.min()
        rare.append(float(lowest.float().mean()))
        rare_at_top.append(float(lowest[cov.indices[: int(2e-4 * len(cov.indices))]].float().mean()))
    print(f"the lowest advantage: {mean(rare):.1%} of the tokens, {mean(rare_at_top):.0%} of the top 2e-4")
    print(f"mean -log p {surprise:.2f} nats; mean covariance of the top (paper's Table 1, a 7B model, in brackets):")
    for share, reported in TABLE_1.items():
        seen = mean(float(cov[: int(share * len(cov))].mean()) for cov in covs)
        print(f"  {share:7.2%} {seen:7.3f} ({reported})")
