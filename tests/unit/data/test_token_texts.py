"""Texts of single tokens join to the text of the response, whatever the tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megacov.data.token_texts import TokenTexts

ROOT = Path(__file__).parents[3]
TEXT = "Wait, 3 \u2264 x: \u6f22\u5b57 and \U0001f642\U0001f469\u200d\U0001f52c \u00e9\n\n  so the answer is \u00bd."


def _bytes() -> PreTrainedTokenizerBase:
    """Every byte is a token, and a few pairs are, as in GPT-2's and Qwen's vocabularies."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u0120", "t"), ("\u0120t", "h"), ("\u0120th", "e"), ("\u010a", "\u010a"), ("\u0120", "\u0120")]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _pieces() -> PreTrainedTokenizerBase:
    """Words carry the space before them and bytes stand in for the rest, as in Llama 2's and Mistral's vocabularies."""
    words = ["\u2581", "\u2581the", "\u2581answer", "\u2581is", "\u2581so", "a", "x", "\u2581a", ".", "\u00e9"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _tiny() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(ROOT / "examples" / "tiny_policy")
    return tokenizer


@pytest.mark.parametrize("make", [_bytes, _pieces, _tiny])
def test_texts_join_to_the_response(make) -> None:
    tokenizer = make()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    before = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.decode([*before, *ids], clean_up_tokenization_spaces=False)
    found = texts.of_response(ids)
    assert len(found) == len(ids)
    assert "".join([tokenizer.decode(before), *found]) == whole
    assert make is _tiny or "\u6f22\u5b57 and \U0001f642" in "".join(found)


@pytest.mark.parametrize("make", [_bytes, _pieces, _tiny])
def test_every_token_has_a_text_also_where_tokens_make_no_text(make) -> None:
    tokenizer, draw = make(), random.Random(0)
    texts = TokenTexts(tokenizer)
    for length in (0, 1, 2, 3, 50, 400):
        ids = [draw.randrange(len(tokenizer)) for _ in range(length)]
        found = texts.of_response(ids)
        assert len(found) == length and all(isinstance(text, str) for text in found)
    assert all(texts.of_token(token) for token in range(len(tokenizer)))


def test_a_response_that_is_cut_in_a_character_shows_that(tmp_path: Path) -> None:
    tokenizer = _bytes()
    ids = tokenizer.encode("x\U0001f642", add_special_tokens=False)
    assert TokenTexts(tokenizer).of_response(ids) == ["x", "", "", "", "\U0001f642"]
    assert TokenTexts(tokenizer).of_response(ids[:-1]) == ["x", "", "", "\ufffd"]


def test_special_tokens_are_shown() -> None:
    tokenizer = _tiny()
    assert TokenTexts(tokenizer).of_response([5, 14, tokenizer.eos_token_id]) == ["1", "+", "<eos>"]
