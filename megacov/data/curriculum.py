"""Running accuracy of each prompt, and a curriculum by it: prompts that are too easy or too hard are passed over.

A group of responses shows something of a policy's gradient only if some are right and some are wrong, and most if
about half are right (arXiv 2504.03380). Filtering finds that out after sampling; the accuracy of earlier epochs finds
most of it out before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megacov.config.messages import show
from megacov.errors import CheckpointError
from megacov.json_text import parse_json
from megacov.types import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_SAMPLES = 2**32 - 1
_MOST_PASSES = 2**16 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumSettings:
    """Which prompts are passed over; the fields are those of the configuration's section `data.curriculum`."""

    low: float
    high: float
    decay: float
    right_above: float
    min_samples: int
    revisit_every: int


@dataclass(frozen=True, slots=True, eq=False)
class PromptAccuracies:
    """What is known of each prompt. Never changed: `after` makes new arrays, so that an earlier state can be saved.

    mean: [number of prompts] float64, running share of right responses; meaningless without responses.
    num_samples: [number of prompts] uint32, responses judged so far.
    num_passed: [number of prompts] uint16, times in a row that the prompt was passed over.
    """

    settings: CurriculumSettings
    mean: NDArray[np.float64]
    num_samples: NDArray[np.uint32]
    num_passed: NDArray[np.uint16]

    @classmethod
    def unknown(cls, settings: CurriculumSettings, *, num_prompts: int) -> PromptAccuracies:
        """Begin with no response judged."""
        import numpy as np  # here, since login nodes that import this module need not have it

        counts = np.zeros(num_prompts, dtype=np.uint32), np.zeros(num_prompts, dtype=np.uint16)
        return cls(settings, np.zeros(num_prompts), *counts)

    def passes_over(self, index: int, *, num_passed: int) -> bool:
        """Whether a prompt is passed over when its turn comes.

        Args:
            index: place of the prompt in the data.
            num_passed: times in a row that it was passed over by now.

        Returns:
            True where enough responses were judged, its accuracy is outside the band, and it was not passed over
            `revisit_every` - 1 times in a row. So each prompt comes back, as policies improve and estimates err.
        """
        settings = self.settings
        if self.num_samples[index] < settings.min_samples or num_passed >= settings.revisit_every - 1:
            return False
        return not settings.low <= self.mean[index] <= settings.high

    def after(self, turns: Iterable[tuple[int, bool]], samples: Iterable[Sample]) -> PromptAccuracies:
        """Account for a batch.

        Args:
            turns: the prompts whose turn came, in order, and whether each was drawn rather than passed over.
            samples: judged responses, group after group; those whose verifier failed do not count.

        Returns:
            The accuracies after it.
        """
        mean, num_samples, num_passed = self.mean.copy(), self.num_samples.copy(), self.num_passed.copy()
        for index, is_drawn in turns:
            num_passed[index] = 0 if is_drawn else min(int(num_passed[index]) + 1, _MOST_PASSES)
        groups: dict[int, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.group, []).append(sample)
        for group in groups.values():
            index = group[0].prompt.index
            right = [sample.reward > self.settings.right_above for sample in group if sample.failure is None]
            if not right or index >= len(mean):  # carried over from data that the user has replaced since
                continue
            share, decay = sum(right) / len(right), self.settings.decay if num_samples[index] else 0.0
            mean[index] = decay * mean[index] + (1.0 - decay) * share
            num_samples[index] = min(int(num_samples[index]) + len(right), _MOST_SAMPLES)
        return PromptAccuracies(self.settings, mean, num_samples, num_passed)

    def mean_of(self, indices: Sequence[int]) -> float | None:
        """Mean accuracy of those prompts of which a response was judged; None if there are none."""
        known = self.num_samples[list(indices)] > 0
        return float(self.mean[list(indices)][known].mean()) if known.any() else None

    def bands(self) -> dict[str, float]:
        """Shares of all prompts that are below, in and above the band, and of those with too few responses."""
        is_known = self.num_samples >= self.settings.min_samples
        below, above = is_known & (self.mean < self.settings.low), is_known & (self.mean > self.settings.high)
        shares = {"below_band": below, "above_band": above, "in_band": is_known & ~below & ~above, "unknown": ~is_known}
        return {name: float(share.mean()) for name, share in shares.items()}

    def dump(self) -> str:
        """Write as text: a line with the number of prompts, then one for each prompt whose turn has come."""
        import numpy as np

        lines = [json.dumps({"num_prompts": len(self.mean)})]
        for index in np.flatnonzero((self.num_samples > 0) | (self.num_passed > 0)).tolist():
            values = (self.mean[index].item(), self.num_samples[index].item(), self.num_passed[index].item())
            lines.append(json.dumps([index, *values]))
        return "\n".join([*lines, ""])

    def load(self, text: str) -> PromptAccuracies:
        """Read the text of `dump`; accuracies are equal to the bit.

        Args:
            text: text of the accuracies of data with any number of prompts.

        Returns:
            The accuracies. These ones themselves if the data has another number of prompts now.

        Raises:
            CheckpointError: the text has another form.
        """
        head, *lines = text.splitlines() or [""]
        loaded = PromptAccuracies.unknown(self.settings, num_prompts=len(self.mean))
        try:
            num_prompts = parse_json(head.encode())["num_prompts"]
            rows = [_checked(parse_json(line.encode()), num_prompts=num_prompts) for line in lines]
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the accuracies of a checkpoint are malformed: {show(str(error))}.") from error
        if num_prompts != len(self.mean):
            return self
        for index, mean, num_samples, num_passed in rows:
            loaded.mean[index], loaded.num_samples[index] = mean, num_samples
            loaded.num_passed[index] = num_passed
        return loaded


def _checked(row: Any, *, num_prompts: int) -> tuple[int, float, int, int]:
    index, mean, num_samples, num_passed = row
    counts = ((index, num_prompts - 1), (num_samples, _MOST_SAMPLES), (num_passed, _MOST_PASSES))
    if any(type(value) is not int or not 0 <= value <= most for value, most in counts):
        raise ValueError(f"{row} holds a count out of range")
    if not isinstance(mean, float) or not 0.0 <= mean <= 1.0:
        raise ValueError(f"{row} holds no accuracy")
    return index, mean, num_samples, num_passed
