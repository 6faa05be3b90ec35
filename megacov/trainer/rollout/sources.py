"""The prompts of a run: its sources, and the stream that mixes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from megacov.config import RunConfig
from megacov.config.advice import prompts_repeat
from megacov.data import PromptStream, load_prompts
from megacov.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_sources(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, keep_rows: bool
) -> PromptStream:
    """Read the prompts of all sources; a source with fewer prompts than a step takes of it is named on stderr.

    Args:
        config: the run's configuration.
        tokenizer: tokenizer of the model.
        vocab_size: rows of the model's embedding.
        keep_rows: whether prompts keep their rows of the data.

    Returns:
        The stream of prompts, at its beginning.

    Raises:
        DataError: the prompts cannot be read, or do not fit the model.
    """
    sources: list[Sequence[Prompt]] = []
    for place, source in enumerate(config.sources):
        prompts = load_prompts(
            source.path,
            tokenizer,
            vocab_size=vocab_size,
            prompt_field=source.prompt_field or config.data.prompt_field,
            answer_field=source.answer_field or config.data.answer_field,
            chat_template=config.data.chat_template,
            chat_template_kwargs=config.data.chat_template_kwargs,
            max_prompt_length=config.data.max_prompt_length,
            keep_rows=keep_rows,
        )
        sources.append([replace(prompt, source=place) for prompt in prompts] if place else prompts)
        if (warning := prompts_repeat(config, len(prompts), source=place)) is not None:
            print(f"megacov: warning: {warning}", file=sys.stderr)
    return PromptStream(*sources, seed=config.run.seed, shuffle=config.data.shuffle, weights=config.shares)
