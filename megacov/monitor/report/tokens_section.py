"""The tokens that were held, in a report: exact tables of a step, and sums over the samples of all steps."""

from __future__ import annotations

from collections.abc import Sequence

from megacov.monitor.report.charts import table
from megacov.monitor.report.samples import Samples, TokenSums, most_entropy_lost, most_selected
from megacov.monitor.report.text import count, escape, number
from megacov.monitor.token_table import LISTS, TokenRow, TokenTable

MOST_TOKENS = 20
"""Rows of a table of token texts."""


def tokens_section(tables: Sequence[TokenTable], samples: Samples) -> tuple[str, str]:
    """The newest tables of the whole vocabulary, and sums over the tokens in RUN/samples.

    Args:
        tables: by step.
        samples: of the run.

    Returns:
        HTML, and "", or "" and why there is nothing to show.
    """
    body = (_newest(tables[-1]) if tables else "") + (_of_samples(samples) if samples.num_with_values else "")
    if body:
        return body, ""
    return "", (
        "The run has neither RUN/tokens.jsonl nor samples with values of tokens: monitor.token_table_every and"
        " monitor.samples_per_step ask for them."
    )


def _newest(newest: TokenTable) -> str:
    head = ["token", "id", "times", "selected", "mean entropy (nats)", "mean covariance", "entropy lost (nats)"]
    since = "" if newest.since is None else f"; entropy lost is counted from step {newest.since}"
    parts = [
        f"<h3>All tokens of step {newest.step}</h3><p>Exact, over {count(newest.count, 'token')} of all ranks, of which"
        f" {newest.selected:,} were selected{since}.</p>"
    ]
    for name, order in LISTS.items():
        rows = newest.lists.get(name, ())[:MOST_TOKENS]
        if rows:
            parts.append(table(head, map(_cells, rows), caption=f"Step {newest.step}, by order: {order}"))
    return "".join(parts)


def _cells(row: TokenRow) -> list[str]:
    values = ("" if value is None else number(value, digits=3) for value in (row.entropy, row.covariance, row.lost))
    return [quoted(row.text), str(row.token), f"{row.count:,}", f"{row.selected:,}", *values]


def _of_samples(samples: Samples) -> str:
    held = most_selected(samples.by_text, most=MOST_TOKENS)
    drawn = most_entropy_lost(samples.by_text, most=MOST_TOKENS)
    seen = f"{count(samples.num_with_values, 'response')} of RUN/samples"
    body = (
        f"<h3>Tokens in the samples of all steps</h3><p>From {escape(seen)}, which are a few of each step, and not from"
        " all that was trained on.</p>"
    )
    if held:
        body += _sums(held, f"Selected most often in {seen}")
    else:
        body += "<p>None of their tokens was selected.</p>"
    if drawn:
        body += _sums(drawn, f"Largest sum of covariances in {seen}: to first order these pull entropy down most")
    return body


def _sums(found: list[tuple[str, TokenSums]], caption: str) -> str:
    rows = [
        [
            quoted(text),
            f"{sums.tokens:,}",
            f"{sums.selected:,}",
            number(sums.selected / sums.tokens, digits=3),
            number(sums.covariance, digits=3),
            number(sums.entropy / sums.tokens, digits=3),
        ]
        for text, sums in found
    ]
    head = ["token", "times", "selected", "share selected", "sum of covariance", "mean entropy (nats)"]
    return table(head, rows, caption=caption)


def quoted(text: str) -> str:
    """A token in one line, with its blanks to be seen."""
    return '"' + text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") + '"'
