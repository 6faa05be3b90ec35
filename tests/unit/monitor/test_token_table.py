"""Tables of tokens against plain sums, in their file and as Markdown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megacov.errors import DataError
from megacov.monitor.breakdown import TokenSums
from megacov.monitor.token_table import NUM_ROWS, TokenTables, read_token_tables, render_markdown

VOCABULARY = 500


def _sums(seed: int, *, size: int = VOCABULARY) -> TokenSums:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 30, size) * (generator.random(size) < 0.5)
    kept = np.minimum(counts, generator.integers(0, 30, size))
    selected = np.minimum(kept, generator.integers(0, 3, size))
    entropy, covariance = generator.random(size) * counts, generator.normal(size=size) * kept
    return TokenSums(
        *(torch.tensor(values, dtype=torch.float64) for values in (counts, kept, selected, entropy, covariance))
    )


def _tables(folder: Path, **options: int) -> TokenTables:
    return TokenTables(folder, text_of=lambda token: f"t{token}", **options)


def test_lists_hold_the_first_tokens_of_each_order(tmp_path: Path) -> None:
    sums = _sums(0)
    table = _tables(tmp_path).add(sums, step=3)
    assert (table.step, table.since, table.lists["lost"]) == (3, None, ())
    assert (table.count, table.selected) == (int(sums.tokens.sum()), int(sums.selected.sum()))
    assert table.entropy == pytest.approx(float(sums.entropy.sum() / sums.tokens.sum()), rel=1e-5)
    for name in ("selected", "entropy", "covariance"):
        values = getattr(sums, name).tolist()
        expected = sorted((token for token in range(VOCABULARY) if values[token] > 0), key=lambda i: (-values[i], i))
        assert [row.token for row in table.lists[name]] == expected[:NUM_ROWS]
    for row in table.lists["covariance"]:
        assert (row.text, row.count, row.kept) == (f"t{row.token}", sums.tokens[row.token], sums.kept[row.token])
        assert row.covariance == pytest.approx(float(sums.covariance[row.token] / sums.kept[row.token]), rel=1e-5)


def test_what_tokens_lost_adds_up_to_the_fall_of_the_entropy(tmp_path: Path) -> None:
    before, after = _sums(0, size=NUM_ROWS), _sums(1, size=NUM_ROWS)
    after = after._replace(
        entropy=torch.minimum(after.entropy, before.entropy * after.tokens.sum() / before.tokens.sum())
    )
    tables = _tables(tmp_path)
    first, second = tables.add(before, step=10), tables.add(after, step=20)
    lost = sum(row.lost or 0.0 for row in second.lists["lost"])
    assert second.since == 10 and first.entropy is not None and second.entropy is not None
    assert lost == pytest.approx(first.entropy - second.entropy, rel=1e-4) and lost > 0.1


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    sums = _sums(0)
    sums.entropy[4], sums.covariance[5] = torch.nan, torch.inf
    table = _tables(tmp_path).add(sums, step=1)
    assert table.entropy is None
    assert all(row.token != 4 for row in table.lists["entropy"])
    assert [(row.token, row.covariance) for row in table.lists["covariance"][:1]] == [(5, None)]
    assert read_token_tables(tmp_path) == [table]


def test_the_file_is_read_back_and_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    tables = _tables(tmp_path)
    first, second, third = (tables.add(_sums(step), step=step) for step in (10, 20, 30))
    assert read_token_tables(tmp_path) == [first, second, third]
    with (tmp_path / "tokens.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "since": null}\n[1]\n{"step": 50, "si')
    problems: list[str] = []
    assert read_token_tables(tmp_path, on_problem=problems.append) == [first, second, third]
    assert [problem.partition(" cannot be read")[0][-6:] for problem in problems] == ["line 4", "line 5", "line 6"]
    resumed = _tables(tmp_path, first_step=21).add(_sums(4), step=30)
    assert resumed.since is None and resumed != third
    assert read_token_tables(tmp_path) == [first, second, resumed]
    assert read_token_tables(tmp_path / "nowhere") == []


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens.jsonl").mkdir()
    with pytest.raises(DataError, match=r"tokens\.jsonl cannot be written: Is a directory\."):
        _tables(tmp_path).add(_sums(0), step=1)


def test_no_token_breaks_the_markdown(tmp_path: Path) -> None:
    texts = ["|", "\n", "<b>", "`", " wait", "\u00e9", "**", "\ufffd"]
    tables = TokenTables(tmp_path, text_of=lambda token: texts[token % len(texts)])
    page = render_markdown(tables.add(_sums(0), step=1))
    rows = [line for line in page.splitlines() if line.startswith("| ") and "token" not in line]
    assert rows and all(row.count("|") == 8 for row in rows)
    cells = {row.split(" | ")[0].removeprefix("| ") for row in rows}
    assert cells <= {
        "&#34;" + cell + "&#34;"
        for cell in (" wait", "\u00e9", "&#124;", "&#92;n", "&#60;b&#62;", "&#96;", "&#42;&#42;", "&#65533;")
    }
