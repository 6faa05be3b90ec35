"""From texts of prompts to token ids, with or without a chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from megacov.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_plain(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Encode texts with the special tokens that the tokenizer puts before them, such as BOS, each once.

    Those that the tokenizer puts after a text, such as EOS, are left out: a response would begin after the end.

    Args:
        texts: prompts without a chat template.
        tokenizer: tokenizer of the model.

    Returns:
        Token ids of each text.
    """
    encoded = tokenizer(list(texts), return_special_tokens_mask=True)
    prompts, ends, num_doubled = [], set(), 0
    for ids, is_added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        num_before = sum(takewhile(bool, is_added))
        num_after = sum(takewhile(bool, reversed(is_added[num_before:])))
        before, own = ids[:num_before], ids[num_before : len(ids) - num_after]
        ends.update(ids[len(ids) - num_after :])
        is_doubled = bool(before) and own[:num_before] == before
        num_doubled += is_doubled
        prompts.append(own if is_doubled else before + own)
    if ends:
        names = " and ".join(tokenizer.convert_ids_to_tokens(sorted(ends)))
        print(f"megacov: the tokenizer puts {names} after every text; prompts are used without it.", flush=True)
    if num_doubled:
        print(
            f"megacov: {num_doubled} prompts begin with the special tokens that the tokenizer puts before every text; "
            "they have them once.",
            flush=True,
        )
    return prompts


def apply_chat_template(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> list[str]:
    """Wrap texts as messages of a user in the tokenizer's chat template, up to where the response begins.

    Args:
        texts: contents of the messages.
        tokenizer: tokenizer of the model.
        arguments: further values for the template, by name.

    Returns:
        The wrapped texts. Special tokens are part of them.

    Raises:
        DataError: there is no template, or it refuses the messages or the arguments.
    """
    if not tokenizer.chat_template:
        raise DataError("data.chat_template is on, but the tokenizer has no chat template; turn it off.")
    conversations = [[{"role": "user", "content": text}] for text in texts]
    try:
        template: str = tokenizer.get_chat_template()
        rendered: list[str] = tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=True, **arguments
        )
    except (TemplateError, ValueError, TypeError) as error:
        given = f" with data.chat_template_kwargs {dict(arguments)}" if arguments else ""
        raise DataError(
            f"The tokenizer's chat template fails{given} ({' '.join(str(error).split())}): correct "
            "data.chat_template_kwargs or the template."
        ) from error
    unused = [name for name in arguments if not re.search(rf"\b{re.escape(name)}\b", template)]
    if unused:
        print(
            f"megacov: warning: data.chat_template_kwargs sets {', '.join(unused)}, and the tokenizer's chat template "
            "reads nothing of that name.",
            flush=True,
        )
    return rendered
