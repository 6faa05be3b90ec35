"""How often the theorem's predictions have the sign of the true change of entropy, on random tabular policies.

Every state has logits of its own, normal with a spread, and normal advantages with mean 0 under its policy, or with a
mean that varies between states. The true change is that of an infinitesimal step with exact expectations: a natural
step adds the advantages to the logits, a plain one the gradient of the expected advantage. Predictions are from exact
expectations, or from a batch of tokens that are drawn from the policy.
Run: python -m benchmarks.theorem_signs
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from megacov.monitor.theorem import natural_gradient_change, plain_gradient_change

BATCHES = (16, 64, 256, 1024)


@dataclass(frozen=True)
class Changes:
    """Change of the mean entropy of each policy by a step of size 1, [n] float64 nats.

    covariance: minus the covariance of log-prob and advantage over all states and tokens, as in `theorem/covariance`.
    centred: mean over tokens of the change by a natural step; with exact expectations the truth for one.
    gradient: the same by a plain step.
    """

    covariance: Tensor
    centred: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Policies:
    """n random policies, all [n, states, tokens] float64."""

    log_probs: Tensor
    advantages: Tensor

    def exact(self) -> Changes:
        """Changes with expectations over all states and tokens."""
        return self._mean(*self._changes(), weights=self.log_probs.exp() / self.log_probs.shape[1])

    def sampled(self, num_tokens: int) -> Changes:
        """The same from a batch of tokens of the first state alone."""
        drawn = torch.multinomial(self.log_probs[:, 0].exp(), num_tokens, replacement=True)
        values = [each[:, 0].gather(1, drawn)[:, None] for each in self._changes()]
        return self._mean(*values, weights=torch.full_like(values[0], 1 / num_tokens))

    def _changes(self) -> tuple[Tensor, ...]:
        """Of each token: log-prob, advantage, change by a natural and by a plain step."""
        log_p, p = self.log_probs, self.log_probs.exp()
        entropy = torch.special.entr(p).sum(-1, keepdim=True)
        square_sum, square_log_sum = p.square().sum(-1, keepdim=True), (p.square() * log_p).sum(-1, keepdim=True)
        natural = natural_gradient_change(log_p, entropy, self.advantages)
        plain = plain_gradient_change(log_p, entropy, square_sum, square_log_sum, self.advantages)
        return log_p, self.advantages, natural, plain

    @staticmethod
    def _mean(log_probs: Tensor, advantages: Tensor, natural: Tensor, plain: Tensor, *, weights: Tensor) -> Changes:
        def mean(values: Tensor) -> Tensor:
            return (weights * values).sum((1, 2))

        def centred(values: Tensor) -> Tensor:
            return values - mean(values)[:, None, None]

        return Changes(-mean(centred(log_probs) * centred(advantages)), mean(natural), mean(plain))


def make_policies(number: int, *, states: int, tokens: int, spread: float, offset: float = 0.0) -> Policies:
    """Draw policies; the same ones for the same arguments.

    Args:
        number: of policies.
        states: of each policy, all equally likely.
        tokens: of the vocabulary.
        spread: standard deviation of the logits.
        offset: standard deviation over states of their mean advantage, in those of an advantage.

    Returns:
        The policies.
    """
    torch.manual_seed(0)
    log_p = torch.log_softmax(torch.randn(number, states, tokens, dtype=torch.float64) * spread, -1)
    advantages = torch.randn(number, states, tokens, dtype=torch.float64)
    advantages -= (log_p.exp() * advantages).sum(-1, keepdim=True)
    return Policies(log_p, advantages + offset * torch.randn(number, states, 1, dtype=torch.float64))


def same_sign(one: Tensor, other: Tensor) -> float:
    """Share of the policies in which both changes have one sign."""
    return float((one.sign() == other.sign()).double().mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", type=int, default=10_000)
    number = parser.parse_args().policies
    torch.set_num_threads(1)
    print(
        "One state. Policies in which a prediction has the sign of the exact plain gradient step, by tokens in a batch"
    )
    print(f"  {'':33s}" + "".join(f"{size:>8d}" for size in BATCHES) + "   exact")
    for tokens in (16, 64):
        for spread in (1.0, 2.0, 3.0):
            policies = make_policies(number, states=1, tokens=tokens, spread=spread)
            exact = policies.exact()
            found = [*(policies.sampled(size) for size in BATCHES), exact]
            for name in ("covariance", "centred", "gradient"):
                shares = "".join(f"{same_sign(getattr(each, name), exact.gradient):8.1%}" for each in found)
                print(f"  {tokens:3d} tokens, spread {spread}, {name:10s}{shares}")
    print("Several states, 16 tokens, spread 2, exact. Policies in which covariance has the sign of")
    print(f"  {'':42s}  natural step  plain step")
    for states in (1, 4, 16):
        for offset in (0.0, 0.5, 1.0):
            exact = make_policies(number, states=states, tokens=16, spread=2.0, offset=offset).exact()
            natural, plain = (same_sign(exact.covariance, each) for each in (exact.centred, exact.gradient))
            print(f"  {states:2d} states, mean advantages of spread {offset}    {natural:12.1%}{plain:12.1%}")


if __name__ == "__main__":
    main()
