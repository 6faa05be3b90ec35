"""What stands around a question, with and without a chat template, and BOS once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megacov.data import PromptTable, load_prompts
from megacov.errors import DataError

LETTERS = {letter: place + 3 for place, letter in enumerate("abcSUA\n")}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ {'system': 'S', 'user': 'U', 'assistant': 'A'}[m.role] }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}A{% endif %}"
)
TURNS = [
    {"role": "system", "content": "c"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "b"},
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of letters that puts BOS before every text, with a chat template that writes BOS too."""
    backend = Tokenizer(models.BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, **LETTERS}, merges=[]))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def loaded(folder: Path, tokenizer: PreTrainedTokenizerBase, prompt: object, **settings: object) -> PromptTable:
    path = folder / "a.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "answer": "1"}))
    return load_prompts(path, tokenizer, vocab_size=16, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "settings", "text"),
    [
        ("a", {}, "a"),
        ("<s>a", {}, "<s>a"),
        ("a", {"instruction": "b{prompt}c"}, "bac"),
        (TURNS, {}, "c\n\na\n\nb\n\nb"),
        ("a", {"chat_template": True}, "<s>UaA"),
        ("a", {"chat_template": True, "system_prompt": "b", "instruction": "{prompt}c"}, "<s>SbUacA"),
        (TURNS, {"chat_template": True, "system_prompt": "b"}, "<s>ScUaAbUbA"),
    ],
)
def test_texts_around_a_question(
    prompt: object, settings: dict[str, object], text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (found,) = loaded(tmp_path, tokenizer, prompt, **settings)
    assert found.text == text
    letters = text.removeprefix("<s>")
    assert list(found.token_ids) == [1, *(LETTERS[letter] for letter in letters)], "BOS once, whoever writes it"


def test_a_template_that_wants_turns_to_alternate_refuses_others(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = "{% if messages[0].role != 'user' %}{{ raise_exception('no system') }}{% endif %}a"
    with pytest.raises(DataError, match=r"chat template fails \(no system\)"):
        loaded(tmp_path, tokenizer, "a", chat_template=True, system_prompt="b")


def test_remarks_about_a_tokenizer_come_once_for_all_batches(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "<s>a", "answer": "1"}\n' * 2500)
    assert len(load_prompts(path, tokenizer, vocab_size=16)) == 2500
    assert capsys.readouterr().out.count("2500 prompts begin with the special tokens") == 1
