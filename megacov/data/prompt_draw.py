"""The prompts of one rollout batch: drawn one by one, and counted only if the batch uses them."""

from __future__ import annotations

from dataclasses import dataclass

from megacov.data.curriculum import PromptAccuracies
from megacov.data.prompt_stream import PromptStream
from megacov.types import Prompt


@dataclass(frozen=True, slots=True)
class UsedPrompts:
    """The prompts that a batch used, and those that a curriculum passed over on the way.

    position: data position after the last of them.
    turns: prompts whose turn came, in order, and whether each was drawn; empty without a curriculum.
    """

    position: int
    turns: tuple[tuple[int, bool], ...]

    def metrics(self, accuracies: PromptAccuracies) -> dict[str, float]:
        """`curriculum/*`, by the accuracies that the draw went by."""
        drawn = [index for index, is_drawn in self.turns if is_drawn]
        mean = accuracies.mean_of(drawn)
        return {
            "curriculum/skipped": len(self.turns) - len(drawn),
            **({} if mean is None else {"curriculum/accuracy": mean}),
            **{f"curriculum/{name}": share for name, share in accuracies.bands().items()},
        }


class PromptDraw:
    """An endless iterator over the prompts of one batch, in the order of the data.

    It goes by the accuracies at its start, so it does not depend on when a prompt is asked for.
    """

    def __init__(self, stream: PromptStream, accuracies: PromptAccuracies | None = None) -> None:
        """Draw nothing yet.

        Args:
            stream: prompts in the order of the data.
            accuracies: which prompts are passed over; None passes over none.
        """
        self._stream, self._accuracies = stream, accuracies
        self._num_passed: dict[int, int] = {}
        self._turns: list[tuple[int, bool]] = []
        # After each drawn prompt: the data position, and the number of turns.
        self._marks = [(stream.position, 0)]

    def __iter__(self) -> PromptDraw:
        """Return the iterator itself."""
        return self

    def __next__(self) -> Prompt:
        """Draw the next prompt.

        If as many prompts in a row are outside the band as the data holds, the next one is drawn whatever its accuracy.
        """
        (prompt,) = self._stream.take(1)
        if self._accuracies is not None:
            left = len(self._accuracies.mean)
            while left > 0 and self._passes_over(prompt.index, self._accuracies):
                left -= 1
                (prompt,) = self._stream.take(1)
            self._num_passed[prompt.index] = 0
            self._turns.append((prompt.index, True))
        self._marks.append((self._stream.position, len(self._turns)))
        return prompt

    def _passes_over(self, index: int, accuracies: PromptAccuracies) -> bool:
        num_passed = self._num_passed.get(index, int(accuracies.num_passed[index]))
        if not accuracies.passes_over(index, num_passed=num_passed):
            return False
        self._num_passed[index] = num_passed + 1
        self._turns.append((index, False))
        return True

    def first(self, num_prompts: int) -> UsedPrompts:
        """What the first so many drawn prompts used up; whatever was drawn after them comes again.

        Args:
            num_prompts: prompts that the batch used, none or more.

        Returns:
            The data position after them, and the turns until there.
        """
        position, num_turns = self._marks[num_prompts]
        return UsedPrompts(position, tuple(self._turns[:num_turns]))
