"""The alarms of a run in a report."""

from __future__ import annotations

from collections.abc import Sequence

from megacov.monitor.alarm import Alarm
from megacov.monitor.report.charts import table
from megacov.monitor.report.text import escape


def alarms_section(alarms: Sequence[Alarm], source: str) -> str:
    """A table of alarms, or a sentence that there is none.

    Args:
        alarms: in the order of the steps.
        source: where they come from, as a sentence.

    Returns:
        HTML.
    """
    if not alarms:
        return f"<p>No alarm. {escape(source)}</p>"
    rows = [
        [
            alarm.kind.replace("_", " "),
            str(alarm.step),
            "lasts" if alarm.cleared is None else f"over at step {alarm.cleared}",
            alarm.seen,
            alarm.meaning,
            alarm.knob,
        ]
        for alarm in alarms
    ]
    head = ["alarm", "step", "since then", "seen", "meaning", "what to change"]
    return f"<p>{escape(source)}</p>" + table(head, rows, caption="Alarms by step", text_columns=len(head))


def alarms_summary(alarms: Sequence[Alarm]) -> str:
    """Their number, and the names of those that last."""
    if not alarms:
        return "none"
    lasting = sorted({alarm.kind.replace("_", " ") for alarm in alarms if alarm.cleared is None})
    return f"{len(alarms)}, still lasting: {', '.join(lasting)}" if lasting else f"{len(alarms)}, all over"
