"""Memory and time of reading many short prompts.

    python -m benchmarks.prompt_memory [--rows 10000000] [--form jsonl]

Writes rows such as {"prompt": "1234567=", "answer": "7"} into a folder for temporary files, reads them with the
tokenizer of examples/tiny_policy, and prints the bytes that a prompt costs. Exits with 1 if the process at its largest
has grown by more than twice what the table holds, and 64 MiB.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from megacov.data import load_prompts, load_tokenizer

ROOT = Path(__file__).parents[1]
_VOCAB_SIZE = 16
_WARM_UP_ROWS = 2000
_SPARE_BYTES = 64 << 20
_BATCH_ROWS = 100_000


def write_rows(path: Path, num_rows: int, *, form: str) -> None:
    """Write short rows.

    Args:
        path: file to write.
        num_rows: rows.
        form: "jsonl", "json" for a list, or "parquet".
    """
    if form == "parquet":
        _write_parquet(path, num_rows)
        return
    start, between, end = ("[", ",\n", "]") if form == "json" else ("", "\n", "\n")
    with path.open("w", encoding="ascii") as file:
        file.write(start)
        for row in range(num_rows):
            file.write(f'{between if row else ""}{{"prompt": "{row}=", "answer": "{row % 10}"}}')
        file.write(end)


def _write_parquet(path: Path, num_rows: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("prompt", pa.string()), ("answer", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, _BATCH_ROWS):
            rows = range(start, min(start + _BATCH_ROWS, num_rows))
            columns = [[f"{row}=" for row in rows], [str(row % 10) for row in rows]]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))


def main(
    rows: Annotated[int, typer.Option(min=1, help="Rows to read.")] = 10_000_000,
    form: Annotated[Literal["jsonl", "json", "parquet"], typer.Option(help="Kind of file.")] = "jsonl",
) -> None:
    """Write rows, read them, and print bytes and seconds."""
    tokenizer = load_tokenizer(ROOT / "examples" / "tiny_policy", vocab_size=_VOCAB_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"prompts.{form}")
        write_rows(path, min(rows, _WARM_UP_ROWS), form=form)
        load_prompts(path, tokenizer, vocab_size=_VOCAB_SIZE)  # what is imported and cached on the way
        write_rows(path, rows, form=form)
        before, began = psutil.Process().memory_info().rss, time.monotonic()
        table = load_prompts(path, tokenizer, vocab_size=_VOCAB_SIZE)
        seconds = time.monotonic() - began
        grown = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, 0)
    held, tokens, most = (each / len(table) for each in (table.num_bytes, table.num_tokens * 4, grown))
    print(
        f"{len(table)} rows of {form}: {held:.1f} bytes a row in the table, of them {tokens:.1f} of tokens; the "
        f"process grew by at most {most:.1f} bytes a row; {seconds:.1f} s, {seconds / len(table) * 1e6:.1f} us a row"
    )
    sys.exit(grown > 2 * table.num_bytes + _SPARE_BYTES)


if __name__ == "__main__":
    typer.run(main)
