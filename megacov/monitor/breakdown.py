"""Where in a rollout batch covariance, entropy and selection are: sums over classes of tokens, and their metrics.

t: response tokens of this rank, laid flat; n: samples of the rollout batch; k: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from megacov.monitor.breakdown_tags import ACCURACY_LIMITS, POSITION_LIMITS
from megacov.ops.class_sums import class_sums

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


class TokenSums(NamedTuple):
    """Sums over the tokens of each class, all [k] float64; a class whose values are not finite has NaN.

    tokens: number of loss tokens.
    kept: number of kept tokens, which alone have a covariance.
    selected: number of selected tokens.
    entropy: over the loss tokens. [nats]
    covariance: over the kept tokens. [nats]
    """

    tokens: Tensor
    kept: Tensor
    selected: Tensor
    entropy: Tensor
    covariance: Tensor


def group_accuracies(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Share of right responses in the group of each sample.

    For rewards of 0 and 1 it is the number of ones over the size of the group. In general it is the mean reward of the
    group, placed in the range of rewards: from the lowest of the batch, or 0 if that is lower, to the highest, or 1 if
    that is higher. Rewards of -1 and 1 so give the share of ones too, wherever the batch holds a -1.

    Args:
        rewards: [n] float, the verifier's, finite.
        group_ids: [n] int64, equal for samples of one prompt.

    Returns:
        [n] float64 in [0, 1].
    """
    scores = rewards.double()
    lowest, highest = scores.min().clamp(max=0.0), scores.max().clamp(min=1.0)
    _, place = group_ids.unique(return_inverse=True)
    counts = torch.bincount(place)
    # Placed first and averaged then: shares of responses that are right or wrong are exact, and so on their limits.
    placed = (scores - lowest) / (highest - lowest)
    return (torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, placed) / counts)[place]


def accuracy_classes(accuracies: Tensor) -> Tensor:
    """The class of each accuracy, as an index into `ACCURACY_CLASSES`.

    Args:
        accuracies: [...] float64 in [0, 1].

    Returns:
        [...] int64.
    """
    limits = torch.tensor(ACCURACY_LIMITS, dtype=torch.float64, device=accuracies.device)
    return torch.bucketize(accuracies, limits) + (accuracies >= 1.0)


def position_classes(positions: Tensor) -> Tensor:
    """The class of each position in a response, as an index into `POSITION_CLASSES`.

    Args:
        positions: [...] int64, from 0.

    Returns:
        [...] int64.
    """
    return torch.bucketize(positions, torch.tensor(POSITION_LIMITS, device=positions.device), right=True)


def token_sums(
    divisions: Sequence[tuple[Tensor, int]],
    *,
    entropy: Tensor,
    cov: Tensor,
    loss_mask: Tensor,
    kept_mask: Tensor,
    selected: Tensor,
    group: ProcessGroup | None,
) -> list[TokenSums]:
    """Sums over classes, for several divisions of the same tokens into classes, in one message.

    Args:
        divisions: class of each token, [t] int64, and the number of classes; the same numbers on all ranks.
        entropy: [t] float.
        cov: [t] float, of `megacov.ops.covariance`.
        loss_mask: [t] bool.
        kept_mask: [t] bool.
        selected: [t] bool.
        group: ranks that hold the other tokens.

    Returns:
        One record a division; equal on all ranks, and for every split of the tokens.

    Collectives: group: SUM [10, all classes] float64.
    """
    counts = [(mask, mask) for mask in (loss_mask, kept_mask, selected)]
    sums = class_sums(divisions, [*counts, (entropy, loss_mask), (cov, kept_mask)], group=group)
    return [TokenSums(*part) for part in sums]


def breakdown_metrics(sums: TokenSums, *, section: str, names: Sequence[str], has_selection: bool) -> dict[str, float]:
    """Means over each class, under the tags of `megacov.monitor.breakdown_tags`. Waits for the device.

    Args:
        sums: of one division.
        section: "cov_by_accuracy" or "cov_by_position".
        names: of the classes.
        has_selection: whether the algorithm selects tokens.

    Returns:
        Values by tag; NaN where a class is empty.
    """
    quantities = {
        "covariance": sums.covariance / sums.kept,
        "entropy": sums.entropy / sums.tokens,
        "selected": sums.selected / sums.kept,
        "tokens": sums.tokens / sums.tokens.sum(),
    }
    if not has_selection:
        del quantities["selected"]
    values = torch.stack(list(quantities.values())).tolist()
    return {
        f"{section}/{quantity}_{name}": value
        for quantity, row in zip(quantities, values, strict=True)
        for name, value in zip(names, row, strict=True)
    }
