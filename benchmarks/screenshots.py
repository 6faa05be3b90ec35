"""Pictures of a run's report, and of TensorBoard's page of custom scalars, as a browser shows them.

    python -m benchmarks.screenshots RUN [--folder docs/figures]

Chromium must be installed. The pictures are `report_*.png` and `custom_scalars.png`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from megacov.monitor.report import gather_facts, render
from tests.support.browser import Browser, browsing, why_no_browser
from tests.support.tensorboard_servers import serving

MAX_TOKENS = 200_000
SECTIONS = ("law", "samples")
"""Sections of the report that are pictured, each in a file of its own."""
_SIZE = {"width": 1180, "height": 900}
_TALLEST = 1400
"""Height at which a picture of a section is cut. [pixels]"""


def picture_report(browser: Browser, run: Path, folder: Path) -> list[Path]:
    """Picture the first screen of a run's report, and sections of it.

    Args:
        browser: a started browser.
        run: run folder.
        folder: folder of the pictures, which exists.

    Returns:
        The files written.
    """
    paths = [folder / "report_overview.png", *(folder / f"report_{name}.png" for name in SECTIONS)]
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        page.write_text(render(gather_facts(run, max_tokens=MAX_TOKENS)), encoding="utf-8")
        browser.open(page.as_uri(), **_SIZE)
        browser.screenshot(paths[0])
        for name, path in zip(SECTIONS, paths[1:], strict=True):
            place = browser.run(
                f"(() => {{ const it = document.getElementById('{name}').getBoundingClientRect();"
                " return {x: 0, y: it.y + scrollY, width: innerWidth, height: it.height}; })()"
            )
            browser.screenshot(path, clip=place | {"height": min(place["height"], _TALLEST)})
    return paths


def picture_custom_scalars(browser: Browser, run: Path, folder: Path) -> Path:
    """Picture the charts of TensorBoard's page of custom scalars, which has to draw three lines first.

    Args:
        browser: a started browser.
        run: run folder.
        folder: folder of the picture, which exists.

    Returns:
        The file written.
    """
    path = folder / "custom_scalars.png"
    with serving(run / "tensorboard") as servers:
        browser.open(f"{servers.addresses['data server']}#custom_scalars", width=1180, height=1500)
        browser.wait(f"{_ELEMENTS}.filter(each => each.matches('path.line') && each.getTotalLength() > 50).length >= 3")
        time.sleep(_SETTLES_S)
        place = browser.run(
            f"(() => {{ const it = {_ELEMENTS}.find(each => each.matches('tf-category-paginated-view'))"
            ".getBoundingClientRect(); return {x: it.x, y: it.y, width: it.width, height: it.height}; })()"
        )
        browser.screenshot(path, clip=place)
    return path


# TensorBoard's page is made of nested elements with shadow trees.
_ELEMENTS = (
    "(function all(node) { return [...node.querySelectorAll('*')].flatMap(each => [each, ...(each.shadowRoot ?"
    " all(each.shadowRoot) : [])]); })(document)"
)
_SETTLES_S = 3.0
"""Time in which TensorBoard's lines and axes come to rest after the first are drawn."""


def main() -> None:
    """Make all pictures of the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("docs", "figures"))
    options = parser.parse_args()
    if why := why_no_browser():
        parser.error(why)
    options.folder.mkdir(parents=True, exist_ok=True)
    with browsing() as browser:
        written = picture_report(browser, options.run, options.folder)
        written.append(picture_custom_scalars(browser, options.run, options.folder))
    for path in written:
        print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
