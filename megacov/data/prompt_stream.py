"""The order of the prompts: endless, reshuffled every epoch, and resumable from one number."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megacov.data.interleaving import Interleaving
from megacov.types import Prompt

if TYPE_CHECKING:
    import numpy as np


class PromptStream:
    """Hands out prompts endlessly, each source in a different order every epoch.

    Several sources are mixed by their weights, each with epochs of its own. An epoch's order depends only on the seed,
    the epoch and the place of the source. `position` counts the prompts handed out, over all sources and epochs, so a
    new stream that starts at an old one's position continues it. Finding a position takes no longer the farther it is.
    """

    def __init__(
        self,
        *sources: Sequence[Prompt],
        seed: int,
        shuffle: bool = True,
        position: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Start after the first `position` prompts.

        Args:
            *sources: one or more data sets of one or more prompts each.
            seed: seed of the orders.
            shuffle: whether to shuffle; otherwise every epoch has the given order.
            position: prompts already handed out, over all sources and epochs.
            weights: share of each source, relative to the others; None for equal shares.
        """
        assert sources and all(sources), "load_prompts never returns an empty data set"
        assert position >= 0
        self._sources = sources
        self._interleaving = Interleaving([1.0] * len(sources) if weights is None else weights)
        self._orders = [
            _Order(len(prompts), seed=seed, suffix=f"/{place}" if len(sources) > 1 else "", shuffle=shuffle)
            for place, prompts in enumerate(sources)
        ]
        self._position = position

    @property
    def num_prompts(self) -> int:
        """Prompts of all sources."""
        return sum(map(len, self._sources))

    @property
    def position(self) -> int:
        """Prompts handed out so far, over all sources and epochs; a checkpoint needs nothing else."""
        return self._position

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt in its source, from 0."""
        source, place = self._interleaving.at(self._position)
        return place // len(self._sources[source])

    def moved_to(self, position: int) -> PromptStream:
        """The same stream at another position. Both share the orders, which take seconds for millions of prompts."""
        moved = copy.copy(self)
        moved._position = position
        return moved

    def take(self, num_prompts: int) -> list[Prompt]:
        """Hand out the next prompts. The first prompts of an epoch follow the last ones of the epoch before."""
        taken: list[Prompt] = []
        for _ in range(num_prompts):
            source, place = self._interleaving.at(self._position)
            taken.append(self._sources[source][self._orders[source].at(place)])
            self._position += 1
        return taken


class _Order:
    """The order of one source. It keeps that of one epoch, in 4 bytes a prompt."""

    def __init__(self, num_prompts: int, *, seed: int, suffix: str, shuffle: bool) -> None:
        self._num_prompts, self._seed, self._suffix, self._shuffle = num_prompts, seed, suffix, shuffle
        self._epoch = -1
        self._indices: np.ndarray | range = range(num_prompts)

    def at(self, place: int) -> int:
        """Index of the prompt that is handed out after `place` others."""
        epoch, place = divmod(place, self._num_prompts)
        if self._shuffle and epoch != self._epoch:
            self._epoch, self._indices = epoch, self._shuffled(epoch)
        return int(self._indices[place])

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Indices sorted by `random.Random(...).random()`.

        Python guarantees the numbers of a seed, but not its shuffle. Numpy's RandomState, which is frozen (NEP 19),
        makes the same numbers of Python's state, ten times faster.
        """
        import numpy as np  # here, since login nodes that import this module need not have it

        _, state, _ = random.Random(f"{self._seed}/{epoch}{self._suffix}").getstate()
        generator = np.random.RandomState()
        generator.set_state(("MT19937", np.array(state[:-1], dtype=np.uint32), state[-1], 0, 0.0))
        return generator.random_sample(self._num_prompts).argsort(kind="stable").astype(np.uint32)
