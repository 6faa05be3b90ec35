"""The report of an evaluation: JSON that depends on nothing but the results, and a table in the paper's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megacov.evaluation.set_scores import SetScores

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that an evaluation reports.

    model: name of the model in the table.
    identity: what decides the results, as in the file of records.
    settings: settings of each set, by its name.
    digests: digest of each set's problems, by its name.
    scores: scores of each set, by its name, in the order of the columns.
    missing: sets of the suite whose files are missing.
    unreadable: number of gold answers that the verifier cannot read, by the name of the set.
    versions: oldest and newest version of the weights that sampled a set, in an evaluation during training.
    """

    model: str
    suite: str
    identity: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, str]
    scores: Mapping[str, SetScores]
    missing: Sequence[str]
    unreadable: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def average(self) -> float:
        """Plain mean of the columns, each set counting equally."""
        return sum(_headline(scores)[1] for scores in self.scores.values()) / len(self.scores)

    def to_json(self) -> str:
        """The report as JSON with sorted keys; equal results give equal bytes. No time and no folder is in it."""
        values = {
            **self.identity,
            "model": self.model,
            "suite": self.suite,
            "average": self.average,
            "missing_sets": list(self.missing),
            "sets": {name: self._set(name) for name in self.scores},
        }
        return json.dumps(values, sort_keys=True, indent=2, allow_nan=False) + "\n"

    def _set(self, name: str) -> dict[str, Any]:
        scores = self.scores[name]
        return {
            **({"weight_versions": list(self.versions[name])} if name in self.versions else {}),
            "settings": self.settings[name],
            "problems_digest": self.digests[name],
            "problems": scores.num_problems,
            "responses": scores.num_responses,
            "scores": {
                each: {"value": value, "low": interval.low, "high": interval.high}
                for each, (value, interval) in scores.scores.items()
            },
            "response_length": scores.response_length,
            "truncated_share": scores.truncated_share,
            "negative_log_prob": scores.negative_log_prob,
            "verifier_failures": scores.failures,
            "unreadable_answers": self.unreadable[name],
        }


def paper_table(report: Report) -> Table:
    """One row for the model, one column for each set in percent, and the intervals below; as in the paper."""
    from rich.markup import escape
    from rich.table import Column, Table

    # Where the terminal is narrow, a figure goes on in the next line; rich would cut it.
    table = Table(Column("model", overflow="fold"))
    name = "".join(character if character.isprintable() else "?" for character in report.model)
    values, intervals = [escape(name)], ["95 % interval"]
    for name, scores in report.scores.items():
        metric, value, low, high = _headline(scores)
        table.add_column(f"{name}\n{metric}", justify="right", overflow="fold")
        values.append(_percent(value))
        intervals.append(f"{_percent(low)}-{_percent(high)}")
    table.add_column("average", justify="right", overflow="fold")
    table.add_row(*values, _percent(report.average))
    table.add_row(*intervals, "")
    return table


def details_table(report: Report) -> Table:
    """One row for each score of each set."""
    from rich.table import Column, Table

    table = Table(
        Column("set", overflow="fold"),
        Column("score", overflow="fold"),
        title="percent, with 95 % intervals over problems",
    )
    for column in ("value", "interval", "problems", "tokens", "cut", "-log p", "verifier failed"):
        table.add_column(column, justify="right", overflow="fold")
    for name, scores in report.scores.items():
        rest = (
            str(scores.num_problems),
            f"{scores.response_length:,.1f}",
            _percent(scores.truncated_share),
            f"{scores.negative_log_prob:.3f}",
            str(sum(scores.failures.values())),
        )
        for number, (metric, (value, interval)) in enumerate(scores.scores.items()):
            shown = f"{_percent(interval.low)}-{_percent(interval.high)}"
            table.add_row(name if number == 0 else "", metric, _percent(value), shown, *(rest if number == 0 else ()))
    return table


def scalars(scores: Mapping[str, SetScores]) -> dict[str, float]:
    """The report as TensorBoard scalars: eval/<set>/<score>."""
    found: dict[str, float] = {}
    for name, each in scores.items():
        found |= {f"eval/{name}/{metric}": value for metric, (value, _) in each.scores.items()}
        found[f"eval/{name}/response_length"] = each.response_length
        found[f"eval/{name}/truncated_share"] = each.truncated_share
        found[f"eval/{name}/negative_log_prob"] = each.negative_log_prob
        found[f"eval/{name}/verifier_failures"] = float(sum(each.failures.values()))
    return found


def _headline(scores: SetScores) -> tuple[str, float, float, float]:
    metric, (value, interval) = next(iter(scores.scores.items()))
    return metric, value, interval.low, interval.high


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}"
