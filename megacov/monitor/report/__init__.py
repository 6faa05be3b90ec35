"""The report of a run: one HTML page that needs no network."""

from megacov.monitor.report.gather import gather_facts
from megacov.monitor.report.page import render

__all__ = ["gather_facts", "render"]
