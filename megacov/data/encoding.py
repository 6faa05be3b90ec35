"""From the messages of prompts to token ids, with or without a chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from megacov.data.columns import Messages
from megacov.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Encodes prompts in batches, and remembers what a user should know about all of them.

    Without a chat template, contents of several messages are joined by a blank line, special tokens that the tokenizer
    puts before a text, such as BOS, come once, and those that it puts after a text, such as EOS, are left out: a
    response would begin after the end. A chat template puts special tokens into the text itself.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, chat_template: bool, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Choose how to encode.

        Args:
            tokenizer: tokenizer of the model.
            chat_template: whether to wrap messages in the tokenizer's chat template.
            arguments: further values for the template, by name.
        """
        self._tokenizer, self._chat_template, self._arguments = tokenizer, chat_template, arguments or {}
        self._ends: set[int] = set()
        self._num_doubled = 0

    def encode(self, prompts: Sequence[Messages]) -> tuple[list[str], list[list[int]]]:
        """Encode prompts.

        Args:
            prompts: messages of each.

        Returns:
            The text of each prompt, and its token ids.

        Raises:
            DataError: there is no template, or it refuses the messages or the arguments.
        """
        if self._chat_template:
            texts = apply_chat_template(prompts, self._tokenizer, self._arguments)
            return texts, self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        texts = ["\n\n".join(message["content"] for message in messages) for messages in prompts]
        return texts, self._encode_plain(texts)

    def print_remarks(self) -> None:
        """Print once what holds for some of the prompts encoded so far."""
        if self._chat_template:
            template = self._tokenizer.get_chat_template()
            unused = [name for name in self._arguments if not re.search(rf"\b{re.escape(name)}\b", template)]
            if unused:
                print(
                    f"megacov: warning: data.chat_template_kwargs sets {', '.join(unused)}, and the tokenizer's chat "
                    "template reads nothing of that name.",
                    flush=True,
                )
        if self._ends:
            names = " and ".join(self._tokenizer.convert_ids_to_tokens(sorted(self._ends)))
            print(f"megacov: the tokenizer puts {names} after every text; prompts are used without it.", flush=True)
        if self._num_doubled:
            print(
                f"megacov: {self._num_doubled} prompts begin with the special tokens that the tokenizer puts before "
                "every text; they have them once.",
                flush=True,
            )

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, return_special_tokens_mask=True)
        prompts = []
        for ids, is_added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            num_before = sum(takewhile(bool, is_added))
            num_after = sum(takewhile(bool, reversed(is_added[num_before:])))
            before, own = ids[:num_before], ids[num_before : len(ids) - num_after]
            self._ends.update(ids[len(ids) - num_after :])
            is_doubled = bool(before) and own[:num_before] == before
            self._num_doubled += is_doubled
            prompts.append(own if is_doubled else before + own)
        return prompts


def apply_chat_template(
    prompts: Sequence[Messages], tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> list[str]:
    """Wrap messages in the tokenizer's chat template, up to where the response begins.

    Args:
        prompts: messages of each prompt.
        tokenizer: tokenizer of the model.
        arguments: further values for the template, by name.

    Returns:
        The wrapped texts. Special tokens are part of them.

    Raises:
        DataError: there is no template, or it refuses the messages or the arguments.
    """
    from jinja2 import TemplateError  # imported here, since few commands render anything

    if not tokenizer.chat_template:
        raise DataError("The tokenizer has no chat template, and data.chat_template is true; set it to false.")
    try:
        rendered: list[str] = tokenizer.apply_chat_template(
            list(prompts), tokenize=False, add_generation_prompt=True, **arguments
        )
    except (TemplateError, ValueError, TypeError) as error:
        given = f" with data.chat_template_kwargs {dict(arguments)}" if arguments else ""
        raise DataError(
            f"The tokenizer's chat template fails{given} ({' '.join(str(error).split())}): correct "
            "data.chat_template_kwargs or the template."
        ) from error
    return rendered
