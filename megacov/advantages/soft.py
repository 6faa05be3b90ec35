"""Maximum-entropy RL: an advantage for each token, in which entropy is a reward like the verifier's.

t: response tokens.
"""

from __future__ import annotations

from torch import Tensor


def soft_advantages(
    advantages: Tensor, log_probs: Tensor, entropy: Tensor, future: Tensor, loss_mask: Tensor, *, coef: float
) -> Tensor:
    """Add to each token's advantage what it does for the entropy: by itself, and of all tokens after it.

    A_t + coef (-log p_t - H_t + F_t - mean F),   F_t = sum over k >= 1 of discount^k H_(t+k)

    H_t is the entropy of the distribution that token t was drawn from. With discount 1 the policy gradient is, on
    average, that of E[reward + coef sum_t H_t]: -log p_t has the gradient of H_t itself, and F_t credits a token for
    the entropy of the states that it leads to, which a bonus on the loss leaves out. H_t and mean F do not depend on
    what is drawn at t, so they are baselines without bias. A smaller discount lowers the variance and the reward for
    long responses; with discount 0 the gradient is that of a bonus on the loss.

    See "Equivalence Between Policy Gradients and Soft Q-Learning" (arXiv 1704.06440).

    Args:
        advantages: [t] float32; read only.
        log_probs: [t] float, under the policy that the tokens were drawn from; read only.
        entropy: [t] float nats, likewise; read only.
        future: [t] float64 nats, F_t - mean F; read only.
        loss_mask: [t] bool; the entropy of other tokens, which the policy did not choose, is no reward.
        coef: what a nat adds, in the unit of advantages, >= 0.

    Returns:
        [t] float32, computed in float64; the given advantages outside the mask.

    Gradient: none.
    """
    gain = future - log_probs.double() - entropy.double()
    return (advantages.double() + coef * gain).to(advantages.dtype).where(loss_mask, advantages)
