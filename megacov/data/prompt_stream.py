"""The order in which prompts are used: shuffled anew every epoch, without end, and resumable from one number."""

from __future__ import annotations

import random
from collections.abc import Sequence

from megacov.types import Prompt


class PromptStream:
    """Hands out prompts without end, every epoch in an order of its own.

    The order of an epoch follows from the seed and the epoch alone, and `position` counts the prompts handed out,
    so that a new stream given the position of an old one continues it.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True, position: int = 0) -> None:
        """Start behind the first `position` prompts.

        Args:
            prompts: the data set, at least one.
            seed: chooses the orders.
            shuffle: if off, every epoch is in the order given.
            position: prompts handed out before, over all epochs.
        """
        assert prompts, "load_prompts never returns an empty data set"
        assert position >= 0
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._position = position
        self._order_epoch = -1
        self._order: Sequence[int] = ()

    @property
    def position(self) -> int:
        """Prompts handed out so far, over all epochs: all that a checkpoint has to keep."""
        return self._position

    @property
    def epoch(self) -> int:
        """Which pass over the data set the next prompt belongs to, from 0."""
        return self._position // len(self._prompts)

    def take(self, num_prompts: int) -> list[Prompt]:
        """Hand out the next prompts; the last of an epoch are followed by the first of the next."""
        taken: list[Prompt] = []
        for _ in range(num_prompts):
            order = self._order_of(self.epoch)
            taken.append(self._prompts[order[self._position % len(order)]])
            self._position += 1
        return taken

    def _order_of(self, epoch: int) -> Sequence[int]:
        if epoch != self._order_epoch:
            self._order_epoch = epoch
            self._order = range(len(self._prompts))
            if self._shuffle:
                # Sorting by random() rather than shuffle(): Python promises the numbers of a seed, not the shuffle.
                generator = random.Random(f"{self._seed}/{epoch}")
                self._order = sorted(self._order, key=lambda _: generator.random())
        return self._order
