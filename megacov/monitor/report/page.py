"""Makes the page of a report: one file with its own style and program, which asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from megacov.monitor.overlays import COLOURS
from megacov.monitor.report.assets import asset
from megacov.monitor.report.facts import RunFacts
from megacov.monitor.report.samples_section import level_styles
from megacov.monitor.report.sections import Section, sections, summary_rows
from megacov.monitor.report.text import escape


def render(facts: RunFacts) -> str:
    """The report of a run as HTML.

    The page has a content security policy: a browser runs the program and the style of this package, known by their
    digests, and nothing else, and connects to nothing. Whatever comes from a model, a file or a user is text.

    Args:
        facts: the run.

    Returns:
        A whole document, which can be encoded as UTF-8.
    """
    style = asset("report.css") + level_styles(
        (level, colours.background, colours.text) for level, colours in COLOURS.items()
    )
    program = asset("report.js")
    parts = tuple(sections(facts))
    policy = (
        f"default-src 'none'; script-src '{_digest(program)}'; style-src '{_digest(style)}'; base-uri 'none';"
        " form-action 'none'"
    )
    return asset("page.html").format(
        policy=policy,
        name=escape(facts.name),
        style=style,
        written=escape(facts.written),
        links="".join(f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in parts),
        summary=_summary(facts, parts),
        sections="".join(map(_section, parts)),
        program=program,
    )


def _summary(facts: RunFacts, parts: Sequence[Section]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in summary_rows(facts))
    missing = [f"{part.title}: {part.missing}" for part in parts if part.missing]
    return (
        (f"<dl>{rows}</dl>" if rows else "")
        + _sentences("Not in this report", missing)
        + _sentences("Could not be read", facts.problems)
    )


def _sentences(title: str, sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h3>{escape(title)}</h3><ul>{items}</ul>" if items else ""


def _section(part: Section) -> str:
    body = part.body or f"<p>{escape(part.missing)}</p>"
    return (
        f'<section id="{part.key}" aria-labelledby="{part.key}-heading"><h2 id="{part.key}-heading">'
        f"{escape(part.title)}</h2>{body}</section>"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
