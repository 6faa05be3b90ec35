"""Prompts: the tokenizer, the prompt file, and the order of use; and packing of samples into micro-batches."""

from __future__ import annotations

from megacov.data.curriculum import CurriculumSettings, PromptAccuracies
from megacov.data.prompt_draw import PromptDraw, UsedPrompts
from megacov.data.prompt_stream import PromptStream
from megacov.data.prompts import load_prompts
from megacov.data.tokenizer import load_tokenizer

__all__ = [
    "CurriculumSettings",
    "PromptAccuracies",
    "PromptDraw",
    "PromptStream",
    "UsedPrompts",
    "load_prompts",
    "load_tokenizer",
]
