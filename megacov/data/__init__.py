"""Prompts: the tokenizer, the prompt files, and the order of use; and packing of samples into micro-batches."""

from __future__ import annotations

from megacov.data.curriculum import CurriculumSettings, PromptAccuracies
from megacov.data.prompt_draw import PromptDraw, UsedPrompts
from megacov.data.prompt_stream import PromptStream
from megacov.data.prompt_table import JoinedPrompts, PromptTable
from megacov.data.prompts import load_prompts
from megacov.data.tokenizer import load_tokenizer

__all__ = [
    "CurriculumSettings",
    "JoinedPrompts",
    "PromptAccuracies",
    "PromptDraw",
    "PromptStream",
    "PromptTable",
    "UsedPrompts",
    "load_prompts",
    "load_tokenizer",
]
