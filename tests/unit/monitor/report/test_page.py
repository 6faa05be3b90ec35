"""The page of a report as a document: its structure, its text, and what it does with text from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from megacov.errors import DataError
from megacov.monitor.event_reader import read_history
from megacov.monitor.history import Series
from megacov.monitor.overlays import COLOURS
from megacov.monitor.report import gather_facts, render
from megacov.monitor.report.assets import asset
from megacov.monitor.report.text import number
from tests.support.shown_runs import write_run

MARK = "</script><script>globalThis.marked=1</script><img src=x onerror='globalThis.marked=1'>\"'><!--\u202e&amp;"
VOID = {"meta", "input", "img", "br", "line", "path", "circle"}


class Document(HTMLParser):
    """Elements in their order, with attributes, own text, and level of nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {[self.elements[place] for place in self._open]}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert tag not in VOID
        assert self.elements[self._open.pop()][0] == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for (name, _), text in zip(self.elements, self.texts, strict=True) if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(folder) -> str:
    return render(gather_facts(folder, max_tokens=10_000))


@pytest.fixture(scope="module")
def document(page) -> Document:
    return Document(page)


def test_it_has_landmarks_and_headings_in_order(document):
    assert [len(document.all(tag)) for tag in ("header", "nav", "main", "footer", "h1", "title")] == [1] * 6
    levels = [int(tag[1]) for tag, _ in document.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert document.text_of("h1") == ["sums_seed0"]
    assert document.text_of("h2") == [
        "Overview", "Alarms", "Entropy and reward", "Entropy law", "Covariance",
        "Where it happens", "Theorem check", "Selection", "Lengths", "Mismatch",
        "Evaluation", "Tokens that were held", "Samples", "Configuration",
    ]  # fmt: skip


def test_every_name_that_it_refers_to_exists_once(document):
    ids = Counter(attributes["id"] for _, attributes in document.elements if "id" in attributes)
    assert [name for name, amount in ids.items() if amount > 1] == []
    for _, attributes in document.elements:
        for key in ("aria-labelledby", "aria-describedby", "for"):
            assert set((attributes.get(key) or "").split()) <= set(ids), attributes
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_every_chart_is_described_and_every_control_has_a_name(document, page):
    pictures = [each for each in document.all("svg") if each.get("role") == "img"]
    assert len(pictures) >= 8
    for picture in pictures:
        assert picture["aria-label"]
        assert re.search(rf'<ul id="{picture["aria-describedby"]}"><li>[^<]*step', page)
    assert all(each.get("role") == "img" or each.get("aria-hidden") == "true" for each in document.all("svg"))
    opened = re.findall(r"<(label|input|select|/label)\b", asset("samples.html"))
    for place, tag in enumerate(opened):
        if tag in ("input", "select"):
            assert "label" in opened[:place]
    assert all(each.get("aria-label") or each.get("aria-labelledby") for each in document.all("section"))
    for _, attributes in document.elements:
        if attributes.get("tabindex") == "0":
            assert attributes.get("aria-label") or attributes.get("aria-labelledby"), attributes
    assert all(each.get("scope") in ("col", "row") for each in document.all("th"))
    assert len(document.text_of("caption")) == len(document.all("table"))


def test_numbers_are_those_of_the_history(folder, page):
    scalars = read_history(folder / "tensorboard").scalars
    for tag, name in (("entropy/token_mean", "every token equal"), ("reward/mean", "all responses")):
        values = scalars[tag].values
        assert f"{name}: {number(values[0])} at step 1, {number(values[-1])} at step 30; lowest" in page
        for step, value in zip(scalars[tag].steps, values, strict=True):
            assert re.search(rf'<th scope="row" class="n">{step}</th>(<td class="n">[^<]*</td>)?<td class="n">'
                             rf"{re.escape(number(value))}</td>", page)  # fmt: skip
    assert '<td class="n">0.34 to 0.66</td>' in page
    cells = ("5", "900", "77", "0.812", "0.0312", "0.00195")
    row = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    assert page.count(f'<th scope="row">&quot; sum&quot;</th>{row}</tr>') == 2


def test_the_law_that_the_run_follows_is_found(page):
    ceiling, low, high = map(
        float, re.search(r"a reward of ([\d.]+), 95 % interval ([\d.]+) to ([\d.]+) \(shaded\)", page).groups()
    )
    assert low <= 1.2 <= high
    assert ceiling == pytest.approx(1.2, abs=0.02)


def test_text_from_outside_stays_text(document, tmp_path):
    marked = Document(render(gather_facts(write_run(tmp_path / "run", mark=MARK), max_tokens=10_000)))
    plain = Counter(tag for tag, _ in document.elements)
    found = Counter(tag for tag, _ in marked.elements)
    # Marked metrics bring another line, and its column of numbers; nothing else.
    assert {tag for tag in found | plain if found[tag] != plain[tag]} == {"li", "svg", "path", "th", "td"}
    assert found["script"] == 2
    assert {name for _, attributes in marked.elements for name in attributes} == {
        name for _, attributes in document.elements for name in attributes
    }
    assert marked.text_of("h1") == [f"sums_seed0{MARK}".replace("\u202e", "\\u202e")]
    assert MARK.replace("\u202e", "\\u202e") in "".join(marked.text_of("td"))
    assert "\u202e" not in "".join(marked.texts)


def test_a_browser_runs_only_what_the_policy_names(document):
    policy = next(
        each["content"] for each in document.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = document.text_of(tag)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"; {directive} 'sha256-{digest}';" in policy
    names = {name for _, attributes in document.elements for name in attributes}
    assert not names & {"style", "src", "srcset", "action"}
    assert not {name for name in names if name.startswith("on")}
    assert all(each["href"].startswith("#") for each in document.all("a"))
    assert not re.search(r"@import|url\(", asset("report.css"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function\(", asset("report.js"))


def luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag_aa_in_light_in_dark_and_on_paper():
    themes = re.findall(r":root \{(.*?)\}", asset("report.css"), re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for background in ("paper", "panel"):
            for text in ("ink", "soft", "link", "warn"):
                assert contrast(colours[text], colours[background]) >= 4.5, (text, background)
        for line in ("s0", "s1", "s2", "s3", "s4", "s5", "s6"):
            assert contrast(colours[line], colours["paper"]) >= 3, line
    assert all(contrast(colours.background, colours.text) >= 4.5 for colours in COLOURS.values())


def test_each_missing_part_is_named_with_its_reason(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("run: {name: young}\n")
    document = Document(render(gather_facts(run, max_tokens=10)))
    text = " ".join(document.texts)
    for reason in (
        "Entropy and reward: The run has logged no metric",
        "Entropy law: The run has logged no step with both",
        "Evaluation: The run has no evaluations",
        "Samples: RUN/samples holds no response",
        "tensorboard",
    ):
        assert reason in text
    assert document.text_of("h1") == ["young"]


def test_damaged_files_are_named_and_the_rest_is_shown(folder, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("run: [\n")
    (run / "evaluations" / "step_20.json").write_text('{"sets": 3}')
    (run / "alarms.jsonl").write_text("{}\n")
    events = next((run / "tensorboard").glob("events*"))
    events.write_bytes(events.read_bytes()[:-20])
    text = " ".join(Document(render(gather_facts(run, max_tokens=10_000))).texts)
    for name in ("config.yaml", "step_20.json", "alarms.jsonl", events.name):
        assert name in text
    assert "every token equal: 1.367" in text


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="give the folder of a run"):
        gather_facts(tmp_path / name, max_tokens=10)


def test_a_law_that_is_refused_gives_no_ceiling(folder):
    facts = gather_facts(folder, max_tokens=10)
    steered = {"algorithm": {"loss": {"name": "kl_cov"}}}
    refused, plain = (render(replace(facts, settings=settings)) for settings in (steered, facts.settings))
    assert "The run steers its entropy (algorithm.loss is kl_cov)" in refused
    assert "without a curve: the law is refused" in refused
    for words in ("ceiling of the reward by the law", "a reward of "):
        assert words in plain
        assert words not in refused


def test_a_ceiling_above_every_reward_is_doubted_as_by_predict(folder):
    facts = gather_facts(folder, max_tokens=10)
    rewards = facts.history.scalars["reward/mean"]
    best = Series(rewards.steps, rewards.values * 0 + rewards.values.max())
    scalars = {tag: series for tag, series in facts.history.scalars.items() if tag != "reward/max"}
    for found, is_doubted in ((scalars, False), (scalars | {"reward/max": best}, True)):
        shown = render(replace(facts, history=replace(facts.history, scalars=found)))
        assert ("the highest reward of any response" in shown) is is_doubted
