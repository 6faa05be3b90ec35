"""The order of the prompts: endless, reshuffled every epoch, and resumable from one number."""

from __future__ import annotations

import random
from collections.abc import Sequence

from megacov.types import Prompt


class PromptStream:
    """Hands out prompts endlessly, in a different order every epoch.

    An epoch's order depends only on the seed and the epoch. `position` counts the prompts handed out, so a new stream
    that starts at an old one's position continues it.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True, position: int = 0) -> None:
        """Start after the first `position` prompts.

        Args:
            prompts: data set of one or more prompts.
            seed: seed of the orders.
            shuffle: whether to shuffle; otherwise every epoch has the given order.
            position: prompts already handed out, over all epochs.
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
        """Prompts handed out so far, over all epochs; a checkpoint needs nothing else."""
        return self._position

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._position // len(self._prompts)

    def take(self, num_prompts: int) -> list[Prompt]:
        """Hand out the next prompts. The first prompts of an epoch follow the last ones of the epoch before."""
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
                # Sorted by random() instead of shuffle(): Python guarantees the numbers of a seed, but not the shuffle.
                generator = random.Random(f"{self._seed}/{epoch}")
                self._order = sorted(self._order, key=lambda _: generator.random())
        return self._order
