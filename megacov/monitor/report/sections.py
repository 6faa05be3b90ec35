"""The sections of a report in their order. Each is HTML, or a sentence that says why there is nothing to show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megacov.monitor.headline_tags import ENTROPY_TAG, REWARD_TAG
from megacov.monitor.history import Series
from megacov.monitor.report import metric_sections as metrics
from megacov.monitor.report.alarms_section import alarms_section, alarms_summary
from megacov.monitor.report.charts import Chart, draw, table
from megacov.monitor.report.facts import RunFacts
from megacov.monitor.report.law_section import law_section, law_summary
from megacov.monitor.report.samples_section import samples_section
from megacov.monitor.report.text import count, escape, number
from megacov.monitor.report.tokens_section import tokens_section

_SCORE = re.compile(r"eval/(?P<set>.+)/(?P<metric>[^/]+)")
_NOT_SCORES = {"response_length", "truncated_share", "negative_log_prob", "verifier_failures", "version_lag_max"}


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    key: letters and hyphens; unique on the page.
    body: HTML; "" if there is nothing to show.
    missing: why there is nothing; "" if there is something.
    """

    key: str
    title: str
    body: str
    missing: str = ""


def sections(facts: RunFacts) -> Iterator[Section]:
    """Yield the sections of a report, in the order of the page."""
    scalars = facts.history.scalars
    yield Section("alarms", "Alarms", alarms_section(facts.alarms, facts.alarms_source))
    yield _charts("entropy-reward", "Entropy and reward", metrics.entropy_and_reward(scalars), "entropy or reward")
    yield Section("law", "Entropy law", *law_section(facts.history, facts.settings))
    yield _charts("covariance", "Covariance", metrics.draw_all(metrics.COVARIANCE, scalars), "covariance")
    yield _charts("where", "Where it happens", metrics.draw_all(metrics.WHERE, scalars), "accuracy or position")
    yield _charts("theorem", "Theorem check", metrics.draw_all(metrics.THEOREM, scalars), "the theorem's check")
    yield _charts("selection", "Selection", metrics.draw_all(metrics.SELECTION, scalars), "selection")
    yield _charts("lengths-section", "Lengths", metrics.draw_all(metrics.LENGTHS, scalars), "length")
    yield _charts("mismatch-section", "Mismatch", metrics.draw_all(metrics.MISMATCH, scalars), "mismatch")
    yield _evaluation(facts)
    yield Section("tokens", "Tokens that were held", *tokens_section(facts.token_tables, facts.samples))
    yield _samples(facts)
    yield Section(
        "configuration",
        "Configuration",
        facts.config and f'<pre tabindex="0" role="region" aria-label="config.yaml">{escape(facts.config)}</pre>',
        "" if facts.config else "The run folder has no config.yaml.",
    )


def summary_rows(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield a name and a value for each line of the overview."""
    scalars = facts.history.scalars
    if ENTROPY_TAG in scalars:
        yield "entropy", _course(scalars[ENTROPY_TAG], " nats")
    if REWARD_TAG in scalars:
        yield "reward", _course(scalars[REWARD_TAG], "")
    held = [series.steps for series in scalars.values() if len(series.steps)]
    if held:
        steps = np.unique(np.concatenate(held))
        yield "logged steps", f"{count(len(steps), 'step')}, {steps[0]} to {steps[-1]}"
    if ceiling := law_summary(facts.history, facts.settings):
        yield "ceiling of the reward by the law", ceiling
    yield "alarms", alarms_summary(facts.alarms)
    if facts.samples.num_samples:
        yield (
            "samples",
            f"{count(facts.samples.num_samples, 'response')}, {count(facts.samples.num_tokens, 'token')}",
        )


def _course(series: Series, unit: str) -> str:
    known = np.flatnonzero(np.isfinite(series.values))
    if not len(known):
        return "no finite value"
    first, last = known[0], known[-1]
    return (
        f"{number(series.values[first])}{unit} at step {series.steps[first]}, {number(series.values[last])}{unit}"
        f" at step {series.steps[last]}"
    )


def _charts(key: str, title: str, body: str, what: str) -> Section:
    if not body:
        return Section(key, title, "", f"The run has logged no metric of {what}.")
    return Section(key, title, f'<div class="charts">{body}</div>')


def _evaluation(facts: RunFacts) -> Section:
    by_set: dict[str, dict[str, str]] = {}
    for tag in facts.evaluation.scalars:
        found = _SCORE.fullmatch(tag)
        if found is not None and found["metric"] not in _NOT_SCORES:
            by_set.setdefault(found["set"], {})[found["metric"]] = tag
    charts = "".join(
        draw(Chart(f"eval-{place}", f"Scores on {name}", "score", lines), facts.evaluation.scalars)
        for place, (name, lines) in enumerate(by_set.items())
    )
    body = f'<div class="charts">{charts}</div>' if charts else ""
    if facts.scores:
        newest = {(score.name, score.metric): score for score in sorted(facts.scores, key=lambda score: score.step)}
        rows = [
            [
                score.name,
                score.metric,
                str(score.step),
                number(score.value),
                _interval(score.low, score.high),
                str(score.problems),
            ]
            for score in newest.values()
        ]
        body += table(
            ["set", "score", "step", "value", "95 % interval", "problems"],
            rows,
            caption="Newest value of each score, with its interval over problems",
            text_columns=2,
        )
    missing = (
        "" if body else "The run has no evaluations: evaluation.suite asks for them, and so does megacov evaluate."
    )
    return Section("evaluation", "Evaluation", body, missing)


def _interval(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def _samples(facts: RunFacts) -> Section:
    if not facts.samples.shown:
        why = "RUN/samples holds no response: monitor.samples_per_step may be 0, or none was written yet."
        return Section("samples", "Samples", "", why)
    return Section("samples", "Samples", samples_section(facts.samples))
