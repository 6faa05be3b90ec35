"""Log-probs and entropy over vocabulary shards, and sums that do not depend on the parallel layout."""

from __future__ import annotations

from megacov.ops.covariance import covariance
from megacov.ops.extremes import masked_extremes
from megacov.ops.future_sums import future_sums
from megacov.ops.linear_log_probs import LinearSums, linear_log_probs_and_entropy, linear_sums
from megacov.ops.log_probs_entropy import vocab_parallel_log_probs_and_entropy
from megacov.ops.masked import masked_mean, masked_sum
from megacov.ops.step_means import token_and_sequence_mean
from megacov.ops.vocab_min_p import linear_min_p_log_probs, vocab_parallel_min_p_log_probs
from megacov.ops.vocab_range import VocabRange
from megacov.ops.vocab_sums import VocabSums, vocab_parallel_sums

__all__ = [
    "LinearSums",
    "VocabRange",
    "VocabSums",
    "covariance",
    "future_sums",
    "linear_log_probs_and_entropy",
    "linear_min_p_log_probs",
    "linear_sums",
    "masked_extremes",
    "masked_mean",
    "masked_sum",
    "token_and_sequence_mean",
    "vocab_parallel_log_probs_and_entropy",
    "vocab_parallel_min_p_log_probs",
    "vocab_parallel_sums",
]
