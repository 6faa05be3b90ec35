"""The report in a real browser: what it says, what its controls do, what it asks for, and how it looks on paper."""

from __future__ import annotations

import json
import re

import pytest

from megacov.monitor.overlays import OVERLAYS, fixed_scale, quantile_scale
from megacov.monitor.report import gather_facts, render
from megacov.monitor.samples import read_samples
from tests.support.browser import Browser, browsing
from tests.support.shown_runs import write_run

pytestmark = pytest.mark.browser

MARK = "</script><script>globalThis.marked=1</script><img src='x' onerror='globalThis.marked=1'><!--"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("browser") / "run", mark=MARK, num_steps=24, num_tokens=60)
    (run / "report.html").write_text(render(gather_facts(run, max_tokens=200_000)), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def browser():
    with browsing() as started:
        yield started


@pytest.fixture
def page(folder, browser: Browser):
    address = (folder / "report.html").as_uri()
    browser.open(address)
    yield browser
    assert browser.problems == []
    assert browser.requests == [address]


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"Array.from(document.querySelectorAll({json.dumps(selector)})).map(each => each.textContent)")


def enter(browser: Browser, name: str, value: str) -> None:
    """Give a control a value as a reader does."""
    browser.run(
        f"(() => {{ const it = document.getElementById({json.dumps(name)}); it.value = {json.dumps(value)};"
        " it.dispatchEvent(new Event('input')); })()"
    )


def test_it_says_what_the_run_did(page, folder):
    assert texts(page, "h1") == [f"sums_seed0{MARK}"]
    assert "Entropy law" in texts(page, "h2")
    assert page.run("globalThis.marked === undefined && document.scripts.length === 2 && document.images.length === 0")
    assert texts(page, "#matches") == ["96 of 96 samples shown"]
    first = next(read_samples(folder))
    assert texts(page, "#prompt") == [first.prompt]
    shown = "".join(texts(page, "#response .t")).replace("\u21b5", "").replace("\u25cc", "")
    assert shown == "".join(first.tokens.texts)
    # A drawing that fails would leave nothing where the line is.
    assert page.run("document.querySelector('#entropy svg[role=img] path.line').getTotalLength()") > 300


def test_filters_leave_the_samples_that_they_ask_for(page, folder):
    every = list(read_samples(folder))
    enter(page, "step-low", "5")
    enter(page, "step-high", "8")
    enter(page, "reward-low", "1")
    wanted = [each for each in every if 5 <= each.step <= 8 and each.reward >= 1]
    assert len(texts(page, "#list option")) == len(wanted) == 8
    assert texts(page, "#sample-title") == ["Step 5, row 1"]
    enter(page, "ending", "truncated")
    assert [re.match("Step (\\d+), row 3 .* truncated", each)[1] for each in texts(page, "#list option")] == list(
        "5678"
    )
    page.run("document.getElementById('next').click()")
    assert texts(page, "#sample-title") == ["Step 6, row 3"]
    enter(page, "length-low", "61")
    assert texts(page, "#matches") == ["0 of 96 samples shown"]
    assert page.run("document.getElementById('sample').hidden")
    page.run("document.getElementById('clear').click()")
    assert texts(page, "#matches") == ["96 of 96 samples shown"]


@pytest.mark.parametrize("kind", ["fixed", "quantiles"])
def test_overlays_colour_tokens_by_the_levels_of_the_terminal(page, folder, kind):
    every = list(read_samples(folder))
    enter(page, "scale", kind)
    for name, overlay in OVERLAYS.items():
        values = [value for each in every for value in getattr(each.tokens, name).astype(float).tolist()]
        scale = fixed_scale(overlay) if kind == "fixed" else quantile_scale(overlay, values)
        page.run(f"document.querySelector('input[name=overlay][value={name}]').click()")
        shown = page.run("Array.from(document.querySelectorAll('#response .t')).map(each => each.className.split(' '))")
        levels = scale.levels(getattr(every[0].tokens, name).tolist())
        assert [
            next((int(part[1:]) * (-1 if part[0] == "m" else 1) for part in each if re.fullmatch("[lm][1-4]", part)), 0)
            for each in shown
        ] == [level or 0 for level in levels]
        assert len({part for each in shown for part in each} - {"t", "selected", "left-out"}) >= 1
        assert ["selected" in each for each in shown] == every[0].tokens.selected.tolist()
        assert ["left-out" not in each for each in shown] == every[0].tokens.kept.tolist()
        assert len(texts(page, "#legend li")) == len(scale.legend())
        values = getattr(every[0].tokens, name).astype(float)
        largest = max(abs(value) for value, level in zip(values, levels, strict=True) if level)
        assert abs(float(texts(page, "#notable tbody tr:first-child td:last-child")[0])) == largest
    page.run("document.querySelector('input[name=overlay][value=none]').click()")
    assert page.run("document.querySelectorAll('#response .l1, #response .l4, #response .m1').length") == 0
    assert page.run("document.getElementById('notable').hidden")


def test_it_is_read_with_the_keyboard(page, folder):
    first = next(read_samples(folder)).tokens
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "Skip to the report"
    page.run("document.getElementById('response').focus()")
    for key, place in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 59)):
        page.press(key)
        (said,) = texts(page, "#token")
        assert said.startswith(f"Token {place}, ")
        value = first.entropy[place]
        assert ("entropy not known" if value != value else f"entropy {value:g}") in said
    page.run("document.querySelector('input[name=overlay]').focus()")
    page.press("ArrowRight")
    assert page.run("document.querySelector('input[name=overlay]:checked').value") == "covariance"
    names = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in names if not node.get("ignored")}
    assert {"banner", "navigation", "main", "contentinfo", "region", "figure", "table", "status"} <= roles
    unnamed = {"spinbutton", "combobox", "radio", "button", "listbox", "image", "link"}
    assert [
        node["role"]["value"]
        for node in names
        if not node.get("ignored") and node["role"]["value"] in unnamed and not node["name"]["value"].strip()
    ] == []


def test_it_is_readable_on_paper(page):
    page.open(page.requests[0], is_dark=True)
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    page.set_media("print", is_dark=True)
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    for gone in ("nav", ".controls", "details"):
        assert page.run(f"document.querySelector('{gone}').offsetHeight") == 0, gone
    for there in ("#entropy svg", "#law-curve figcaption", "#response", "#notable", "#configuration pre"):
        assert page.run(f"document.querySelector('{there}').getBoundingClientRect().height") > 0, there
    assert page.run("getComputedStyle(document.querySelector('#configuration pre')).maxHeight") == "none"
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    page.set_media("")


def test_nothing_is_wider_than_a_small_screen(page):
    page.open(page.requests[0], width=390, height=800)
    assert page.run("document.documentElement.scrollWidth") <= 390
