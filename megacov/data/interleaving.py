"""Sources mixed by weight, in closed form: any position of the mixture is found without the ones before it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class _Fork:
    """Two parts of the sources. The first part receives `numerator / denominator` of what the fork receives."""

    first: _Fork | int
    second: _Fork | int
    numerator: int
    denominator: int

    def of_first(self, received: int) -> int:
        """How many of the first `received` prompts go to the first part: its exact share, rounded half up."""
        return (2 * received * self.numerator + self.denominator) // (2 * self.denominator)


class Interleaving:
    """The source of each prompt of a mixture, evenly spread.

    The two lightest parts are joined until one is left, as in a Huffman code (1952), and at each fork a part receives
    its share of any prefix, rounded. So every prefix of the mixture follows the weights: with up to three sources each
    has less than 1 prompt too many or too few, and with any number less than 2. A part that is itself a fork has at
    most two thirds of the fork above it, so its error e(fork) is at most 1/2 + 2/3 e(fork above), which is below 3/2,
    and a source's is below 1/2 + 3/2.

    Weighted round-robin, which serves the source with the greatest deficit, is no more even and has to be replayed
    from the start; this rule needs a few multiplications at any position.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Build the forks.

        Args:
            weights: positive weight of each source, one or more; only their ratios count.
        """
        assert weights and all(weight > 0 for weight in weights)
        # As decimals, so that weights of 0.7 and 0.3 are exactly 7 to 3.
        exact = (Fraction(str(weight)) for weight in weights)
        heap: list[tuple[Fraction, int, _Fork | int]] = [(weight, i, i) for i, weight in enumerate(exact)]
        heapq.heapify(heap)
        while len(heap) > 1:
            (light, _, second), (heavy, number, first) = heapq.heappop(heap), heapq.heappop(heap)
            share = heavy / (light + heavy)
            fork = _Fork(first, second, share.numerator, share.denominator)
            heapq.heappush(heap, (light + heavy, len(weights) + number, fork))
        self._root = heap[0][2]

    def at(self, position: int) -> tuple[int, int]:
        """The prompt at a position of the mixture.

        Args:
            position: prompts of the mixture before it.

        Returns:
            Its source, and the number of that source's prompts before it.
        """
        node, received = self._root, position
        while isinstance(node, _Fork):
            before = node.of_first(received)
            is_first = node.of_first(received + 1) > before
            node, received = (node.first, before) if is_first else (node.second, received - before)
        return node, received
