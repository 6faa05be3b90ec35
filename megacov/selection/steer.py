"""STEER: weighs each token by how much its own gradient would change the entropy.

Source: "Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective" (arXiv 2510.10150). Shapes: [t] tokens
of this rank; p = exp(log_probs), H the entropy of the distribution that a token was drawn from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megacov.ops.extremes import masked_extremes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@torch.no_grad()
def entropy_changes(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, entropy: Tensor, learning_mask: Tensor
) -> Tensor:
    """The size of the change of entropy that each token's own gradient causes, but for the learning rate.

        |Omega| = |A / p_old  p (1 - p) (log p + H)|

    A positive Omega lowers the entropy: a likely token (log p > -H) becomes more likely, or an unlikely one less so.
    The paper has clipping among its four factors: a token without a gradient changes nothing. The authors' code leaves
    that factor out, so a clipped token can set the scale of all weights; it bounds probabilities by 1e-8, which float64
    makes unnecessary; and its H is that of the old policy beside the current p, here both are of log_probs.

    Args:
        log_probs: [...] float, under the policy about to be updated; read only.
        old_log_probs: [...] float, that the ratio is to; read only.
        advantages: [...] float; read only.
        entropy: [...] float nats, under the policy of log_probs; read only.
        learning_mask: [...] bool, the tokens that have a gradient.

    Returns:
        [...] float32, 0 outside the mask, whatever the values there.

    Collectives: none.
    Gradient: none.
    """
    current, old, h = log_probs.double(), old_log_probs.double(), entropy.double()
    changes = advantages.double() * (current - old).exp() * -torch.expm1(current) * (current + h)
    return changes.abs().where(learning_mask, 0.0).float()


def steer_weights(
    changes: Tensor, kept_mask: Tensor, *, min_weight: float, min_scale: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """A weight of exactly min_weight for the largest change in the group, and nearer to 1 the smaller the change.

        weight = exp(-k |Omega|),  k = -log(min_weight) / max(largest |Omega|, min_scale)

    The authors' code takes the largest of each micro-batch, so that a token's weight depends on the layout. Their other
    map, linear with weights from 0.8 to 1.2, is left out: it strengthens tokens that change nothing.

    Args:
        changes: [...] float32, from `entropy_changes`; read only.
        kept_mask: [...] bool; the other tokens neither count nor are weighed.
        min_weight: smallest weight, in (0, 1].
        min_scale: smallest |Omega| that gets it, > 0, so that small changes are let be.
        group: ranks that hold the other tokens of the selection scope.

    Returns:
        weights: [...] float32 in [min_weight, 1], but for rounding; 1 outside the mask. The same in every layout.
        largest: [] float64, the largest |Omega|, likewise; -inf without a token.

    Collectives: group: those of masked_extremes.
    Gradient: none.
    """
    _, largest = masked_extremes(changes, kept_mask, group=group)
    # A group without a token has the largest value -inf.
    share = changes.double() / largest.clamp(min=min_scale)
    return (min_weight**share).float().where(kept_mask, 1.0), largest
