"""Entropy, mismatch, policy, reward and rollout metrics, under their tags.

t: response tokens of this rank, laid flat; n: samples of the rollout batch. Sums are float64. A function that
communicates sends one message of sums, and one more if it reports extremes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from megacov.ops.class_sums import class_sums
from megacov.ops.masked import exact_sum_parts
from megacov.parallel.collectives import all_reduce_max, all_reduce_sum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from megacov.types import Sample


def masked_means(terms: Mapping[str, tuple[Tensor, Tensor]], *, group: ProcessGroup | None) -> dict[str, Tensor]:
    """Means of several quantities, each under its own mask, in one message; bit-equal in every parallel layout.

    Args:
        terms: (values, mask) by name, [t] float or bool and [t] bool; the same names in the same order on all ranks.
            NaN outside the mask is ignored.
        group: ranks that hold the other tokens.

    Returns:
        The means, scalar float64, under the same names in the same order; NaN where a mask is empty on every rank or a
        masked value on any rank is not finite.

    Collectives: group: SUM [number of names, 3] float64.
    """
    parts = [torch.cat([exact_sum_parts(values, mask), mask.sum().double().view(1)]) for values, mask in terms.values()]
    coarse, fine, counts = all_reduce_sum(torch.stack(parts), group=group).unbind(1)
    return dict(zip(terms, (coarse + fine) / counts, strict=True))


def entropy_means(
    entropies: Mapping[str, Tensor],
    sample_ids: Tensor,
    loss_mask: Tensor,
    *,
    num_samples: int,
    group: ProcessGroup | None,
) -> dict[str, Tensor]:
    """Token mean and sequence mean of the entropy at one or several temperatures.

    Sequences without a loss token are left out. Ranks may share a sequence. Equal entropies of tokens give means of the
    same bits in every layout, which controllers steer by.

    Args:
        entropies: [t] float nats each, keyed by the suffix of its tags: "" at the rollout temperature, "_t1" at 1.
        sample_ids: [t] int64, the sample that each token belongs to, in [0, num_samples).
        loss_mask: [t] bool.
        num_samples: n, over all ranks.
        group: ranks that hold the other tokens.

    Returns:
        `entropy/token_mean<suffix>` and `entropy/sequence_mean<suffix>`, scalar float64.

    Collectives: group: SUM [2 * number of entropies + 2, n] float64.
    """
    terms = [(values, loss_mask) for values in (*entropies.values(), loss_mask)]
    (sums,) = class_sums([(sample_ids, num_samples)], terms, group=group)
    *entropy_sums, counts = sums
    num_sequences = (counts > 0).sum()
    metrics = {}
    for suffix, per_sample in zip(entropies, entropy_sums, strict=True):
        metrics[f"entropy/token_mean{suffix}"] = per_sample.sum() / counts.sum()
        metrics[f"entropy/sequence_mean{suffix}"] = (per_sample / counts.clamp(min=1)).sum() / num_sequences
    return metrics


def mismatch_metrics(
    old_log_probs: Tensor, rollout_log_probs: Tensor, loss_mask: Tensor, *, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """How far the trainer's log-probs are from the rollout server's.

    With m = rollout - old: k1 = m and k3 = exp(-m) - 1 + m estimate KL(rollout || trainer), because the rollout policy
    sampled the tokens.

    Args:
        old_log_probs: [t] float, computed by the trainer; read only.
        rollout_log_probs: [t] float, the server's; read only.
        loss_mask: [t] bool.
        group: ranks that hold the other tokens.

    Returns:
        `rollout/mismatch_*`, scalar float64; all NaN where a log-prob on any rank is not finite.

    Collectives: group: SUM [3, 3] float64, MAX [2] float64.
    """
    m = (rollout_log_probs.detach().double() - old_log_probs.detach().double()).where(loss_mask, 0.0)
    values = {"mismatch_k1": m, "mismatch_k1_abs": m.abs(), "mismatch_k3": torch.expm1(-m) + m}
    means = masked_means({f"rollout/{name}": (value, loss_mask) for name, value in values.items()}, group=group)
    # The appended 0 stands in on a rank without tokens.
    largest = all_reduce_max(torch.cat([m.abs(), m.new_zeros(1)]).max(), group=group)
    # Like the means, the maximum is NaN where a log-prob is infinite.
    return {**means, "rollout/mismatch_max": largest.where(largest.isfinite(), torch.nan)}


def policy_means(
    metric_sums: Mapping[str, Tensor], *, num_tokens: Tensor | int, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """Turn `LossOutput.metrics`, summed over this rank's micro-batches, into means over tokens.

    Args:
        metric_sums: scalar float64 each; the same names on all ranks.
        num_tokens: tokens of all ranks that the sums run over.
        group: ranks that hold the other tokens.

    Returns:
        `policy/<name>`, scalar float64.

    Collectives: group: SUM [number of names] float64.
    """
    names = sorted(metric_sums)
    means = all_reduce_sum(torch.stack([metric_sums[name] for name in names]), group=group) / num_tokens
    return {f"policy/{name}": mean for name, mean in zip(names, means, strict=True)}


def reward_metrics(
    rewards: Tensor, group_ids: Tensor, *, best_reward: float = 1.0, worst_reward: float = 0.0
) -> dict[str, float]:
    """Statistics of the rewards of one rollout. No communication: every rank knows all rewards.

    Args:
        rewards: [n] float.
        group_ids: [n] int64, equal for responses to one prompt.
        best_reward: a response with at least this reward is right.
        worst_reward: a response with at most this reward is wrong.

    Returns:
        `reward/*`.
    """
    values = rewards.double()
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    right, wrong = (values >= best_reward).double(), (values <= worst_reward).double()
    num_right, num_wrong = (values.new_zeros(len(sizes)).index_add(0, group, hits) for hits in (right, wrong))
    largest, smallest = (
        values.new_zeros(len(sizes)).scatter_reduce(0, group, values, kind, include_self=False)
        for kind in ("amax", "amin")
    )
    are_equal = largest == smallest
    return {
        "reward/mean": values.mean().item(),
        "reward/std": values.std(correction=0).item(),
        "reward/min": values.min().item(),
        "reward/max": values.max().item(),
        "reward/all_right_groups": (num_right == sizes).double().mean().item(),
        "reward/all_wrong_groups": (num_wrong == sizes).double().mean().item(),
        "reward/equal_groups": (are_equal & (num_right == 0) & (num_wrong == 0)).double().mean().item(),
    }


def rollout_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Lengths of the responses, and how many the length limit cut.

    Args:
        samples: one or more judged responses.

    Returns:
        `rollout/length_mean`, `rollout/length_max` and `rollout/truncated_fraction`.
    """
    lengths = [len(sample.completion.token_ids) for sample in samples]
    endings = [sample.completion.finish_reason for sample in samples]
    return {
        "rollout/length_mean": sum(lengths) / len(samples),
        "rollout/length_max": max(lengths),
        "rollout/truncated_fraction": endings.count("length") / len(samples),
    }


def version_lag(samples: Sequence[Sample], *, version: int) -> dict[str, float]:
    """Age of the weights that sampled each token.

    Args:
        samples: responses whose weight versions begin with decimal numbers.
        version: version of the current weights.

    Returns:
        `rollout/version_lag` and `rollout/version_lag_max`; both 0 if there is no token.
    """
    spans = [span for sample in samples for span in sample.completion.version_spans if span.end > span.start]
    lags = [(version - span.number, span.end - span.start) for span in spans]
    num_tokens = sum(count for _, count in lags)
    return {
        "rollout/version_lag": sum(lag * count for lag, count in lags) / max(1, num_tokens),
        "rollout/version_lag_max": max((lag for lag, _ in lags), default=0),
    }


def entropy_before_filter(samples: Sequence[Sample]) -> dict[str, float]:
    """Estimate the entropy from the rollout's log-probs, with no forward pass over dropped groups: it is E[-log p].

    Args:
        samples: kept and dropped responses with at least one token between them.

    Returns:
        `entropy/token_mean_before_filter`, nats.
    """
    log_probs = [log_prob for sample in samples for log_prob in sample.completion.log_probs]
    return {"entropy/token_mean_before_filter": -sum(log_probs) / len(log_probs)}
