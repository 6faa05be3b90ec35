"""Evaluation problems that stand in the data: word for word, or by 13 words in a row.

Thirteen words are the measure of GPT-3's report (arXiv 2005.14165, appendix C). Only words count: case, punctuation and
blanks do not. Memory grows with the evaluation set, not with the data.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

NUM_WORDS = 13

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, accents of compatibility, punctuation and blanks."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(words: Sequence[str], num_words: int = NUM_WORDS) -> Iterator[str]:
    """All runs of words of a length, each as one text; none if there are fewer words."""
    for start in range(len(words) - num_words + 1):
        yield " ".join(words[start : start + num_words])


class EvaluationSet:
    """Problems of an evaluation, and where the data holds them.

    exact: problem, counted from 0 -> place of the first prompt that is equal to it.
    shared: problem -> place of the first prompt that shares 13 words with it, and those words.
    """

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        """Index the problems.

        Args:
            name: file of the problems.
            problems: their texts.
        """
        self.name, self.problems = name, list(problems)
        self.exact: dict[int, str] = {}
        self.shared: dict[int, tuple[str, str]] = {}
        self._by_text: dict[str, set[int]] = defaultdict(set)
        self._by_run: dict[str, set[int]] = defaultdict(set)
        for place, problem in enumerate(self.problems):
            words = words_of(problem)
            self._by_text[" ".join(words)].add(place)
            for run in ngrams(words):
                self._by_run[run].add(place)

    def look_for(self, words: Sequence[str], place: str) -> None:
        """Note which problems a prompt of the data holds.

        Args:
            words: words of the prompt, as `words_of` gives them.
            place: where the prompt stands.
        """
        for problem in self._by_text.get(" ".join(words), ()):
            self.exact.setdefault(problem, place)
        for run in ngrams(words):
            for problem in self._by_run.get(run, ()):
                self.shared.setdefault(problem, (place, run))
