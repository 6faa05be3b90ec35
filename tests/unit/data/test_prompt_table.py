"""A table of prompts gives the same prompts as a list of objects would, and its memory is bounded."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from megacov.data import JoinedPrompts, PromptStream, PromptTable, load_prompts, load_tokenizer
from megacov.types import Prompt

ROOT = Path(__file__).parents[3]
SUM_PAIRS = ROOT / "examples" / "sum_pairs" / "prompts.jsonl"
VOCAB_SIZE = 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ROOT / "examples" / "tiny_policy", vocab_size=VOCAB_SIZE)


def test_a_file_gives_what_reading_it_line_by_line_gives(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [json.loads(line) for line in SUM_PAIRS.read_text().splitlines()]
    expected = [
        Prompt(index, row["prompt"], tuple(tokenizer(row["prompt"])["input_ids"]), str(row["answer"]))
        for index, row in enumerate(rows)
    ]
    table = load_prompts(SUM_PAIRS, tokenizer, vocab_size=VOCAB_SIZE, keep_rows=True)
    assert list(table) == expected == [table[place] for place in range(len(table))]
    assert [prompt.row for prompt in table] == rows
    assert table[-1] == expected[-1] and table[2:5] == expected[2:5]
    assert [table.length(place) for place in range(3)] == [len(each.token_ids) for each in expected[:3]]
    with pytest.raises(IndexError):
        table[len(table)]
    taken = PromptStream(table, seed=3).take(500)
    assert taken == PromptStream(expected, seed=3).take(500)


def test_json_lines_a_json_list_and_parquet_give_the_same_prompts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"q": {"text": f"{k}="}, "a": k, "more": [k]} for k in range(2000)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = {"prompt_field": "q.text", "answer_field": "a", "keep_rows": True}
    tables = {
        name: load_prompts(tmp_path / name, tokenizer, vocab_size=VOCAB_SIZE, **columns)
        for name in ("a.jsonl", "a.json", "a.parquet")
    }
    first = list(tables["a.jsonl"])
    assert all(list(table) == first for table in tables.values())
    assert all([prompt.row for prompt in table] == rows for table in tables.values())
    words = {"a.jsonl": "line", "a.json": "row", "a.parquet": "row"}
    for name, table in tables.items():
        assert table.place_of(1999) == f"{tmp_path / name}, {words[name]} 2000"
    every = load_prompts(tmp_path, tokenizer, vocab_size=VOCAB_SIZE, prompt_field="q.text", answer_field="a")
    assert [prompt.text for prompt in every] == [prompt.text for prompt in first] * 3
    places = [every.place_of(index) for index in (0, 1999, 2000, 3999, 4000, 5999)]
    assert places == [
        f"{tmp_path / name}, {words[name]} {row}" for name in ("a.json", "a.jsonl", "a.parquet") for row in (1, 2000)
    ]


def test_tables_join_with_indices_over_all_of_them(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tables = []
    for source, count in enumerate((3, 1, 2)):
        path = tmp_path / f"{source}.jsonl"
        path.write_text("".join(f'\n{{"prompt": "{source}{k}=", "answer": "1"}}\n' for k in range(count)))
        first = sum(map(len, tables))
        tables.append(load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE, source=source, first_index=first))
    joined = JoinedPrompts(tables)
    assert [prompt.index for prompt in joined] == list(range(6)) == list(range(len(joined)))
    assert [prompt.source for prompt in joined] == [0, 0, 0, 1, 2, 2]
    assert joined[-1] == list(joined)[5] and joined[1:3] == list(joined)[1:3]
    assert joined.place_of(2) == f"{tmp_path / '0.jsonl'}, line 6"
    assert joined.place_of(5) == tables[2].place_of(5) == f"{tmp_path / '2.jsonl'}, line 4"


def test_a_prompt_costs_its_text_its_tokens_and_28_bytes(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path, count = tmp_path / "a.jsonl", 10_000
    path.write_text("".join(f'{{"prompt": "{10000 + k}=", "answer": "{k % 10}"}}\n' for k in range(count)))
    load_prompts(SUM_PAIRS, tokenizer, vocab_size=VOCAB_SIZE)  # what is imported and cached on the way
    tracemalloc.start()
    table = load_prompts(path, tokenizer, vocab_size=VOCAB_SIZE)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table.num_bytes == count * (6 + 1 + 6 * 4 + 28) + 3 * 8
    assert held < 1.25 * table.num_bytes, "buffers grow ahead of what they hold"
    assert peak - held < 8 * 2**20, "reading holds a batch, and never the file"


def test_an_empty_table_has_no_prompt() -> None:
    assert list(PromptTable()) == [] and PromptTable().num_bytes == 3 * 8
