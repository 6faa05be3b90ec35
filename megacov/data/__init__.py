"""Prompts: the tokenizer, the prompt files, and the order of use; and packing of samples into micro-batches."""

from __future__ import annotations

from megacov.data.prompt_stream import PromptStream
from megacov.data.prompt_table import JoinedPrompts, PromptTable
from megacov.data.prompts import load_prompts
from megacov.data.tokenizer import load_tokenizer

__all__ = ["JoinedPrompts", "PromptStream", "PromptTable", "load_prompts", "load_tokenizer"]
