"""First-order predictions of the change of entropy, token by token, for a step of size 1 on the logits.

Source: Cui et al. (arXiv 2505.22617), Lemma 1 and Theorems 1 and 2. In a state with policy p = softmax(z) and entropy
H, d H / d z_v = -p_v (log p_v + H). A token y that was sampled there with advantage A adds to the logits of its state
    A e_y / p_y          in a natural-gradient step, whose mean over y is the advantage of each token;
    A (e_y - p)          in a plain gradient step.
The scalar product of either with d H / d z is that token's share of the change; its mean over tokens drawn from p is
exact where every state has logits of its own. t: response tokens of this rank, laid flat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def natural_gradient_change(log_probs: Tensor, entropy: Tensor, advantages: Tensor) -> Tensor:
    """Change of entropy by a natural-gradient step, centred in each state: -A (log p_y + H).

    The log-prob needs no mean over the batch, because its expectation in a state is -H.

    Args:
        log_probs: [t] float, of the sampled tokens.
        entropy: [t] float nats.
        advantages: [t] float.

    Returns:
        [t] float64 nats for a step of size 1.

    Collectives: none.
    """
    return -advantages.double() * (log_probs.double() + entropy.double())


def plain_gradient_change(
    log_probs: Tensor, entropy: Tensor, square_sum: Tensor, square_log_sum: Tensor, advantages: Tensor
) -> Tensor:
    """Change of entropy by a plain gradient step on the logits.

    -A [p_y (log p_y + H) - (sum_v p_v^2 log p_v + H sum_v p_v^2)]

    Args:
        log_probs: [t] float, of the sampled tokens.
        entropy: [t] float nats.
        square_sum: [t] float, sum_v p_v^2.
        square_log_sum: [t] float nats, sum_v p_v^2 log p_v.
        advantages: [t] float.

    Returns:
        [t] float64 nats for a step of size 1.

    Collectives: none.
    """
    log_probs, entropy = log_probs.double(), entropy.double()
    of_token = log_probs.exp() * (log_probs + entropy)
    of_policy = square_log_sum.double() + entropy * square_sum.double()
    return -advantages.double() * (of_token - of_policy)
