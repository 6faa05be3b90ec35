"""The stream of a run's prompts, over all its sources."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.config.advice import prompts_repeat
from megacov.data import PromptStream
from megacov.trainer.prompts import load_sources
from megacov.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_sources(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    keep_rows: bool,
    check_answers: Callable[[Iterable[Prompt], Callable[[int], str]], None],
) -> PromptStream:
    """Read the prompts of all sources; a source with fewer prompts than a step takes of it is named on stderr.

    Args:
        config: the run's configuration.
        tokenizer: tokenizer of the model.
        vocab_size: rows of the model's embedding.
        keep_rows: whether prompts keep their rows of the data.
        check_answers: refuses prompts whose answers a verifier cannot judge against; also gets the place of a prompt in
            the data, by its index.

    Returns:
        The stream of prompts, at its beginning.

    Raises:
        DataError: the prompts cannot be read, or do not fit the model or the verifiers.
    """
    prompts = load_sources(config, tokenizer, vocab_size=vocab_size, keep_rows=keep_rows)
    check_answers(prompts, prompts.place_of)
    sources = prompts.tables
    for place, table in enumerate(sources):
        if (warning := prompts_repeat(config, len(table), source=place)) is not None:
            print(f"megacov: warning: {warning}", file=sys.stderr)
    weights = [source.weight for source in config.sources]
    return PromptStream(*sources, seed=config.run.seed, shuffle=config.data.shuffle, weights=weights)
