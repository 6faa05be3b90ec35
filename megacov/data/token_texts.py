"""What each token of a response adds to its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MOST_TOKENS = 4  # of one character, which has at most four bytes in UTF-8


class TokenTexts:
    """Decodes tokens one by one, so that their texts in a row are the text of the response, special tokens included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Decode nothing yet.

        Args:
            tokenizer: tokenizer of the model.
        """
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}
        # Behind another token: some tokenizers drop the space that a text begins with.
        self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._num_before = len(self._decode(self._before))

    def of_response(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token. A character that several tokens share stands at the last of them.

        Args:
            token_ids: of the response.

        Returns:
            One text a token; some may be empty.
        """
        texts: list[str] = []
        pending: tuple[int, ...] = ()
        for token_id in token_ids:
            pending = (*pending, token_id)
            text = self._text(pending)
            if text.endswith(_UNFINISHED) and len(pending) < _MOST_TOKENS:
                texts.append("")
            else:
                texts.append(text)
                pending = ()
        if pending:
            texts[-1] = self._text(pending)
        return texts

    def of_token(self, token_id: int) -> str:
        """The text of one token by itself; a part of a character is shown as a replacement character."""
        return self._text((token_id,))

    def _text(self, token_ids: tuple[int, ...]) -> str:
        text = self._known.get(token_ids)
        if text is None:
            text = self._decode([*self._before, *token_ids])[self._num_before :]
            if len(token_ids) == 1:  # others are rare and many
                self._known[token_ids] = text
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))
