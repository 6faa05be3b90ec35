"""M2PO: no clip, but a bound on the second moment of the log-ratio over the whole optimizer step.

t: response tokens of one micro-batch, laid flat. A = advantages, rho = exp(log_probs - old_log_probs).
"""

from __future__ import annotations

import torch

from megacov.losses.loss import Metric, TokenLosses, policy_loss
from megacov.types import LossBatch


@policy_loss(
    metrics={"m2po_left_out_fraction": Metric("Tokens that M2PO leaves out of the gradient.", "share")},
    needs_selection=True,
    is_anchored_at_rollout=True,
)
def m2po(batch: LossBatch) -> TokenLosses:
    """Importance-weighted policy gradient, 0 at the selected tokens, which keep their place in the denominator.

    loss = -A rho       elsewhere, with the rollout server's log-probs as the old ones
    loss = 0            at selected tokens

    The selection `m2po` chooses them: the tokens whose log-ratio to the server is largest.

    See "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?" (arXiv 2510.01161).

    Args:
        batch: [t] tensors with `selected`; masked tokens hold 0.

    Returns:
        Losses [t], and the tokens that are left out (`m2po_left_out_fraction`).

    Gradient: to batch.log_probs, 0 at selected tokens.
    """
    assert batch.selected is not None, "Loss checks needs_selection"
    losses = -batch.advantages * torch.exp(batch.log_probs - batch.old_log_probs)
    return TokenLosses(torch.where(batch.selected, 0.0, losses), {"m2po_left_out_fraction": batch.selected})
