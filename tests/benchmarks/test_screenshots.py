"""Pictures of a report and of TensorBoard's page of custom scalars."""

from __future__ import annotations

import struct

import pytest

from benchmarks.screenshots import SECTIONS, picture_custom_scalars, picture_report
from megacov.monitor.custom_scalars import lay_out
from megacov.monitor.tensorboard import MetricWriter
from tests.support.browser import browsing
from tests.support.shown_runs import write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_pictures_show_the_report_and_the_charts_of_the_page(tmp_path):
    run = write_run(tmp_path / "run", num_steps=12)
    with MetricWriter(run / "tensorboard") as writer:
        for step in range(1, 13):
            scalars = {"entropy/token_mean": 2 - step / 10, "entropy/sequence_mean": 2.1 - step / 10}
            writer.write_scalars(scalars | {"reward/mean": step / 12, "cov/top_2pct": step / 3}, step=step)
    with browsing() as browser:
        written = picture_report(browser, run, tmp_path)
        assert browser.problems == []
        written.append(picture_custom_scalars(browser, run, tmp_path))
        page = browser.run("document.body.textContent") or ""
        titles = browser.run(_TITLES)
    assert [path.name for path in written] == [
        "report_overview.png",
        *(f"report_{name}.png" for name in SECTIONS),
        "custom_scalars.png",
    ]
    for path in written:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 500 and height > 300, path
        assert path.stat().st_size > 10_000
    assert "TensorBoard" in page
    assert set(titles) >= {title for charts in lay_out().values() for title in charts}


_TITLES = """
(function all(node) {
  return [...node.querySelectorAll("*")].flatMap((each) => [
    ...(each.children.length ? [] : [each.textContent.trim()]), ...(each.shadowRoot ? all(each.shadowRoot) : [])]);
})(document)
"""
