"""The share that a correction goes through, beside the one that the simulation of a 32B run assumes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.correction_share import share_of
from benchmarks.scaling_selection import CORRECTED_SHARE
from benchmarks.selection_recall_data import Batch, make_batch
from megacov.plan.correction import evenly_spread_share


def test_the_share_reaches_to_the_last_selected_token_of_each_sequence() -> None:
    # Advantages are those of two sequences; the covariance is largest where log-prob and advantage are extreme.
    log_probs, lengths = torch.zeros(12), torch.tensor([5, 7])
    log_probs[[1, 3, 9]] = torch.tensor([-2.0, -3.0, -4.0])
    advantages = torch.tensor([-1.0, 1.0]).repeat_interleave(lengths)
    # The two of the sequence with the negative advantage are selected, up to its fourth token.
    assert share_of(Batch(log_probs, advantages, lengths, log_probs, log_probs), 2 / 12) == pytest.approx(4 / 12)


def test_the_simulation_assumes_what_synthetic_tokens_have() -> None:
    batch = make_batch(0, median_length=3098)
    share = share_of(batch, 2e-4)
    assert 0.6 * CORRECTED_SHARE < share < 1.5 * CORRECTED_SHARE
    mean = float(batch.lengths.double().mean())
    assert share < 0.5 * evenly_spread_share(2e-4, prompt=0, response=mean)
