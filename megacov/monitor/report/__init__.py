"""The report of a run: one HTML page that needs no network."""

from megacov.monitor.report.page import render

__all__ = ["render"]
