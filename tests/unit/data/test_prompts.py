"""Prompt files become prompts with tokens, and a broken file gives an error of one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megacov.data import load_prompts, load_tokenizer
from megacov.errors import DataError
from megacov.rollout import CarriedGroup, load_carried
from megacov.rollout.sampling.carried import dump_carried

TINY_POLICY = Path(__file__).parents[3] / "examples" / "tiny_policy"
VOCAB_SIZE = 16
CHAT_TEMPLATE = "{% for m in messages %}+{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(TINY_POLICY, vocab_size=VOCAB_SIZE)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_prompts_keep_their_order_text_and_answer(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "12=", "answer": "12"}\n\n  \n{"answer": 7, "prompt": "7=", "more": [1]}')
    first, second = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE)
    assert first.row is None is second.row
    _, kept = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, keep_rows=True)
    assert kept.row == {"answer": 7, "prompt": "7=", "more": [1]}
    assert (first.index, first.text, first.answer) == (0, "12=", "12")
    assert (second.index, second.text, second.answer) == (1, "7=", "7")
    assert first.token_ids == tuple(tokenizer.convert_tokens_to_ids(list("12=")))
    assert tokenizer.decode(second.token_ids) == "7="


def test_a_field_that_is_not_used_may_be_nan(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "1=", "answer": "1", "pass_rate": NaN}')
    (prompt,) = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, keep_rows=True)
    assert prompt.row is not None and math.isnan(prompt.row["pass_rate"])
    (carried,) = load_carried(dump_carried([CarriedGroup(prompt, ())]))
    assert carried.prompt.token_ids == prompt.token_ids


def test_other_field_names(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"question": "1=", "target": 1.5, "prompt": "2=", "answer": "2"}')
    (prompt,) = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, prompt_field="question", answer_field="target")
    assert (prompt.text, prompt.answer) == ("1=", "1.5")


def test_chat_template_wraps_the_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "12", "answer": "12"}')
    tokenizer.chat_template = CHAT_TEMPLATE
    (prompt,) = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, chat_template=True)
    assert prompt.text == "+12="
    assert tokenizer.decode(prompt.token_ids) == "+12="


def test_the_longest_prompt_allowed_passes(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "123=", "answer": ""}')
    (prompt,) = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, max_prompt_length=4)
    assert len(prompt.token_ids) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('{"prompt": "1=", "answer": "1"}\n{"prompt": ', r"line 2 is not JSON"),
        (b'{"prompt": "1=", "answer": "1"}\n{"prompt": "\xff=", "answer": "1"}', r"line 2 is not JSON"),
        ('["1=", "1"]', "line 1 is a JSON list"),
        ('{"prompt": "1=", "answer": "1"}\n' + "[" * 3000, "line 2 is not JSON .it is nested more than"),
        ('{"prompt": "1=", "answer": ' + "9" * 5000 + "}", "line 1 is not JSON .it has a number of 5000 digits"),
        ('{"prompt": "1=", "answer": 1e999}', "line 1: the answer in field .answer. is inf, which is no answer"),
        ('{"prompt": "1=", "answer": NaN}', "line 1: the answer in field .answer. is nan, which is no answer"),
        ('{"prompt": "\\ud800=", "answer": "1"}', "line 1 is not JSON .it has half of a surrogate pair"),
        ('\n"1="', "line 2 is a JSON str"),
        ("null", "line 1 is a JSON NoneType"),
        ('{"answer": "1", "question": "1="}', r"no field 'prompt' but answer, question; .*data\.prompt_field"),
        ('{"prompt": "1="}', r"no field 'answer' but prompt; .*data\.answer_field"),
        ("{}", "no field 'prompt' but no field"),
        ('{"prompt": "", "answer": "1"}', "line 1: the prompt in field 'prompt' is empty"),
        ('{"prompt": " \\n", "answer": "1"}', "is empty"),
        ('{"prompt": 12, "answer": "1"}', "is a int"),
        ('{"prompt": null, "answer": "1"}', "is a NoneType"),
        ('{"prompt": "1=", "answer": null}', "answer in field 'answer' is a NoneType"),
        ('{"prompt": "1=", "answer": true}', "answer in field 'answer' is a bool"),
        (
            '{"prompt": "1=", "answer": "1"}\n1\n{}\n',
            "line 2 is a JSON int.*; one more row is broken, and `megacov data",
        ),
        ("{}\n" * 4, "line 1 has no field .*; 3 more rows are broken"),
        (
            '{"prompt": "1234=", "answer": "1"}',
            "1 of 1 prompts have more than data.max_prompt_length = 3 tokens, the first in .*line 1, .* has 5",
        ),
    ],
)
def test_a_bad_file_is_a_data_error(
    content: str | bytes, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_prompts(write(tmp_path, content), tokenizer, vocab_size=VOCAB_SIZE, max_prompt_length=3)
    assert "\n" not in str(error.value)


def test_prompts_that_are_too_long_are_left_out_and_counted_or_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["12=", "1234=", "1=", "12345="]
    path = write(tmp_path, "\n".join(json.dumps({"prompt": text, "answer": text}) for text in texts))
    prompts = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, max_prompt_length=3)
    assert [(each.index, each.text) for each in prompts] == [(0, "12="), (1, "1=")]
    assert prompts.place_of(1) == f"{path}, line 3"
    words = "2 of 4 prompts have more than data.max_prompt_length = 3 tokens, the first in "
    assert capsys.readouterr().out == f"megacov: {words}{path}, line 2, and the longest has 6; 2 are left out.\n"
    with pytest.raises(DataError, match=words + ".*, line 2, and the longest has 6; raise it to 6 or remove them"):
        load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, max_prompt_length=3, too_long="refuse")


@pytest.mark.parametrize(("name", "message"), [("missing.jsonl", "no prompt file"), (".", "folder without a file")])
def test_a_file_that_cannot_be_read_is_a_data_error(
    name: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=message):
        load_prompts(tmp_path / name, tokenizer, vocab_size=VOCAB_SIZE)


def test_a_token_outside_the_vocabulary_is_a_data_error(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "12=", "answer": "1"}')
    equals_id = tokenizer.convert_tokens_to_ids("=")
    load_prompts(path, tokenizer, vocab_size=equals_id + 1)
    with pytest.raises(DataError, match=f"line 1: .* token id {equals_id}, outside .* vocabulary of {equals_id}"):
        load_prompts(path, tokenizer, vocab_size=equals_id)


def test_chat_template_without_one_is_a_data_error(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "12", "answer": "12"}')
    with pytest.raises(DataError, match="tokenizer has no chat template"):
        load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, chat_template=True)


def test_a_prompt_without_tokens_is_a_data_error(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, '{"prompt": "12", "answer": "12"}')
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(DataError, match="line 1: the prompt .* no token"):
        load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, chat_template=True)


def test_a_tokenizer_larger_than_the_model_is_a_data_error() -> None:
    with pytest.raises(DataError, match="has 16 tokens and its model only 15"):
        load_tokenizer(TINY_POLICY, vocab_size=15)


def test_a_missing_model_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model folder"):
        load_tokenizer(tmp_path / "nowhere", vocab_size=VOCAB_SIZE)


@pytest.mark.parametrize(
    "files",
    [
        {},
        *({"tokenizer.json": text} for text in ("", "{", "{}", "[]", "null", '{"model": null, "added_tokens": []}')),
        {"config.json": json.dumps({"model_type": "qwen2"})},
    ],
)
def test_a_folder_without_a_tokenizer_is_a_data_error(files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="ascii")
    with pytest.raises(DataError, match="no tokenizer that transformers can load"):
        load_tokenizer(tmp_path, vocab_size=VOCAB_SIZE)


def tokenizer_with(added: str, *, folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of letters that puts special tokens around a text, as Llama's does with add_eos_token."""
    backend = Tokenizer(models.BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, merges=[]))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = TemplateProcessing(single=added, special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return load_tokenizer(folder, vocab_size=5)


@pytest.mark.parametrize(
    ("added", "expected", "remarks"),
    [
        ("$A", [[3, 4], [1, 3], [3, 2], [1]], 0),
        ("<s> $A", [[1, 3, 4], [1, 3], [1, 3, 2], [1]], 1),
        ("$A </s>", [[3, 4], [1, 3], [3, 2], [1]], 1),
        ("<s> $A </s>", [[1, 3, 4], [1, 3], [1, 3, 2], [1]], 2),
        ("<s> $A <s> </s>", [[1, 3, 4], [1, 3], [1, 3, 2], [1]], 2),
    ],
)
def test_a_prompt_has_its_bos_once_and_no_end(tmp_path: Path, capsys, added, expected, remarks) -> None:
    texts = ("ab", "<s>a", "a</s>", "<s>")
    path = write(tmp_path, "\n".join(json.dumps({"prompt": text, "answer": ""}) for text in texts))
    prompts = load_prompts(path, tokenizer_with(added, folder=tmp_path / "model"), vocab_size=5)
    assert [list(prompt.token_ids) for prompt in prompts] == expected
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == remarks
    if "</s>" in added:
        assert "puts <" in printed[0] and "</s> after every text; prompts are used without it" in printed[0]
    if added.startswith("<s>"):
        assert "2 prompts begin with the special tokens that the tokenizer puts before every text" in printed[-1]


THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %}+"
    "{% endif %}{% if effort == 'none' %}{{ raise_exception('no such effort') }}{% endif %}="
)


def test_values_for_the_chat_template_reach_it(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys) -> None:
    path = write(tmp_path, '{"prompt": "12", "answer": "12"}')
    tokenizer.chat_template = THINKING

    def text_with(**values) -> str:
        (prompt,) = load_prompts(
            path, tokenizer, vocab_size=VOCAB_SIZE, chat_template=True, chat_template_kwargs=values
        )
        assert tokenizer.decode(prompt.token_ids) == prompt.text
        return prompt.text

    assert text_with() == text_with(enable_thinking=True) == "12="
    assert text_with(enable_thinking=False) == "12+="
    assert capsys.readouterr().out == ""
    assert text_with(enable_thinking=False, thinking=False) == "12+="
    printed = capsys.readouterr().out
    assert "chat_template_kwargs sets thinking, and the tokenizer's chat template reads nothing of that" in printed
    with pytest.raises(DataError, match=r"chat template fails with .*'effort': 'none'.* \(no such effort\)"):
        text_with(effort="none")


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('roles must alternate') }}", "{{ 1 + 'a' }}"])
def test_a_chat_template_that_fails_is_a_data_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    path = write(tmp_path, '{"prompt": "12", "answer": "12"}')
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"chat template fails \(.*\): correct") as error:
        load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, chat_template=True)
    assert "\n" not in str(error.value)
