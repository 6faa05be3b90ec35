"""Chooses the responses of a step that people read in RUN/samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from megacov.types import Sample


@dataclass(frozen=True)
class Shown:
    """A chosen response: its row in the batch, and what is notable about it."""

    row: int
    sample: Sample
    notable: tuple[str, ...]


def representative(samples: Sequence[Sample], count: int) -> list[Shown]:
    """A few responses that show what a step was like, from as many prompts as possible.

    The best and the worst reward, the longest response, the first that the length limit cut, and the first on which the
    verifier failed come first; then one response of each further prompt, then a second one of each, and so on. Equal
    candidates are taken in the order of the batch.

    Args:
        samples: judged responses of a step.
        count: largest number of responses.

    Returns:
        The chosen responses in the order of the batch.
    """
    indices = range(len(samples))
    if not samples:
        return []
    notable = {
        "best reward": max(indices, key=lambda i: samples[i].reward),
        "worst reward": min(indices, key=lambda i: samples[i].reward),
        "longest": max(indices, key=lambda i: len(samples[i].completion.token_ids)),
    }
    cut = [i for i in indices if samples[i].completion.finish_reason == "length"]
    failed = [i for i in indices if samples[i].failure is not None]
    notable |= {"cut at the length limit": cut[0]} if cut else {}
    notable |= {"verifier failure": failed[0]} if failed else {}
    chosen = sorted(_first(count, chain(notable.values(), _by_prompt(samples, notable.values()))))
    return [Shown(i, samples[i], tuple(why for why, place in notable.items() if place == i)) for i in chosen]


def _by_prompt(samples: Sequence[Sample], notable: Collection[int]) -> Iterator[int]:
    """Indices of all samples: the first of each prompt, then the second of each, and so on; notable ones are first."""
    places: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.group, []).append(i)
    for row in zip_longest(*(sorted(each, key=lambda i: i not in notable) for each in places.values())):
        yield from (i for i in row if i is not None)


def _first(count: int, indices: Iterable[int]) -> list[int]:
    """The first `count` different ones."""
    return list(dict.fromkeys(indices))[:count]
