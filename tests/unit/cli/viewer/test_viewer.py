"""The viewer without a terminal: every token has its place, and every screen its size."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import ColorSystem

from megacov.cli.viewer.browser import Browser, RunSamples
from megacov.cli.viewer.controls import Controls
from megacov.cli.viewer.layout import lay_out
from megacov.cli.viewer.paint import Painter, colours_of
from megacov.cli.viewer.screen import KEYS, Span, render
from megacov.cli.viewer.viewer import Viewer
from megacov.errors import DataError
from megacov.monitor.overlays import COLOURS
from megacov.monitor.sample_filter import SampleFilter, parse_filter
from megacov.monitor.samples import read_samples
from megacov.monitor.visible_text import visible
from tests.support.sample_files import old_line, sample_line, write_step

TEXTS = st.lists(
    st.sampled_from(["", " word", "\n", "a\nb", "\u4e2d\u6587", "e\u0301", "\x1b[2J", "x" * 30, "]", "\U0001f600"]),
    min_size=1,
    max_size=30,
)
PRESSES = st.lists(
    st.sampled_from([*"hjkl bgG.,np][o1234scf/x?r0", "up", "down", "page up", "home", "enter", "escape", "backspace"]),
    max_size=30,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Five steps: two samples, an old one, a broken file, an empty one, and a long one."""
    run: Path = tmp_path_factory.mktemp("run")
    write_step(run, 1, sample_line(reward=0.0), sample_line(("",), reward=1.0))
    write_step(run, 2, old_line("plain\ntext " * 40))
    write_step(run, 3).write_text("not JSON\n")
    write_step(run, 4, sample_line(()))
    write_step(run, 5, sample_line([" tok", "en\n", "\u4e2d\u6587"] * 50, prompt="why\n" * 40))
    return run


def viewer_of(run: Path, text: str = "") -> Viewer:
    return Viewer(Browser(RunSamples(run), parse_filter(text)))


@given(texts=TEXTS, width=st.integers(1, 40), has_markers=st.booleans())
def test_a_layout_holds_every_token_once_within_the_width(tmp_path_factory, texts, width, has_markers):
    run = tmp_path_factory.mktemp("run")
    write_step(run, 1, sample_line(texts))
    (sample,) = read_samples(run)
    markers = ["3" if i % 2 else "" for i in range(len(texts))] if has_markers else None
    document = lay_out(sample, width=width, ascii_only=False, markers=markers)
    assert all(sum(cell_len(piece.text) for piece in line) <= max(2, width) for line in document.lines)
    for token, text in enumerate(texts):
        pieces = "".join(piece.text for line in document.lines for piece in line if piece.token == token)
        shown = visible(text.replace("\n", "\u21b5")) or "<>"
        assert pieces == (f"[3|{shown}]" if markers and markers[token] else shown)
        line, column = document.line_of[token], document.column_of[token]
        first = next(i for i, piece in enumerate(document.lines[line]) if piece.token == token)
        assert sum(cell_len(piece.text) for piece in document.lines[line][:first]) == column
    begun = list(itertools.chain.from_iterable(map(document.tokens_in, range(len(document.lines)))))
    assert begun == list(range(len(texts)))


@given(presses=PRESSES, width=st.integers(1, 120), height=st.integers(1, 40))
def test_every_screen_fits_whatever_is_pressed(run, presses, width, height):
    viewer = viewer_of(run)
    controls = Controls(viewer)
    for press in ["", *presses]:
        assert controls.press(press)
        entry = controls.entry.label + controls.entry.text if controls.entry else None
        screen = render(viewer, width, height, entry=entry, has_help=controls.has_help)
        assert len(screen.lines) == height
        for line in screen.lines:
            assert sum(cell_len(span.text) for span in line) <= width
            assert all(span.text.isprintable() for span in line)
        row, column = screen.cursor or (0, 0)
        assert 0 <= row < height and 0 <= column < max(1, width)


def test_every_key_of_the_help_does_something(run):
    controls = Controls(viewer_of(run))
    keys = {key for words, _ in KEYS for key in words.replace(",", " , ").split() if len(key) == 1} - {"q"}
    assert keys >= set(".,np][oscf/xrb")
    assert keys <= {*controls._actions}


def test_one_step_is_read_at_a_time(tmp_path):
    for step in range(1, 6):
        write_step(tmp_path, step, sample_line(reward=step))
    steps = RunSamples(tmp_path)
    for step in (1, 2, 3, 4):
        (tmp_path / "samples" / f"step_{step:06d}.jsonl").write_text("")
    browser = Browser(steps, SampleFilter())
    assert browser.sample.reward == 5 and browser.move(-1) == "There is no further sample."


def test_a_long_search_ends_at_a_key(tmp_path, monkeypatch):
    monkeypatch.setattr("megacov.cli.viewer.browser._PATIENCE_S", 0.0)
    for step in range(1, 4):
        write_step(tmp_path, step, sample_line(reward=step))
    browser = Browser(RunSamples(tmp_path), SampleFilter(), should_stop=lambda: True)
    assert browser.set_filter(parse_filter("reward=1")) == "Stopped at step 2: none passes up to there."
    assert browser.sample.step == 3 and str(browser.kept) == ""


def test_notable_tokens_are_those_of_the_overlay_and_scale(run):
    viewer = viewer_of(run, "step=1 reward=0")
    for overlay, token in (("entropy", 3), ("covariance", 0), ("selected", 4), ("mismatch", 0)):
        viewer.show_overlay(overlay)
        viewer.move_to_end(-1)
        viewer.move_notable(1)
        assert viewer.cursor == token, overlay
    assert viewer.message == "No later token of this sample is notable (mismatch)."
    viewer.show_overlay("entropy")
    viewer.switch_scale()
    assert viewer.scale.kind == "quantiles" and viewer.levels == [0, 0, 1, 1, 2]


def test_a_cursor_moves_by_lines_and_pages_and_stays_in_view(run):
    viewer = viewer_of(run, "step=5")
    viewer.resize(20, 10)
    viewer.move_to_end(1)
    assert viewer.cursor == 149
    lines = [viewer.document.line_of[viewer.cursor]]
    while lines[-1] > viewer.document.line_of[0]:
        viewer.move_line(-1)
        lines.append(viewer.document.line_of[viewer.cursor])
        assert viewer.top <= lines[-1] < viewer.top + 10
        assert lines[-1] < lines[-2]
    viewer.move_to_end(-1)
    viewer.move_to_end(-1)
    assert viewer.top == 0  # the prompt
    pages = 0
    while viewer.cursor < 140 and pages < 100:
        viewer.move_page(1)
        pages += 1
        assert viewer.cursor == 0 or viewer.top <= viewer.document.line_of[viewer.cursor] < viewer.top + 10
    assert 90 / 9 <= pages <= len(viewer.document.lines) / 9 + 1


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "is not a folder"), ("", "has no file samples/"), ("empty", "can be read")]
)
def test_a_folder_without_samples_is_named(tmp_path, folder, words):
    if folder == "empty":
        write_step(tmp_path / folder, 1).write_text("{}\n")
    with pytest.raises(DataError, match=words):
        viewer_of(tmp_path / folder)
    with pytest.raises(DataError, match=words):
        viewer_of(tmp_path / folder, "reward=1" if folder != "empty" else "")


def test_colours_are_used_where_there_are_enough_and_nobody_refuses_them():
    assert colours_of({"TERM": "xterm-256color"}) == ColorSystem.EIGHT_BIT
    assert colours_of({"TERM": "xterm", "COLORTERM": "truecolor"}) == ColorSystem.TRUECOLOR
    assert colours_of({"TERM": "xterm"}) is None
    assert colours_of({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}) is None
    assert colours_of({"TERM": "xterm-256color", "NO_COLOR": ""}) == ColorSystem.EIGHT_BIT


@pytest.mark.parametrize("colours", [ColorSystem.EIGHT_BIT, ColorSystem.TRUECOLOR])
def test_levels_differ_in_every_number_of_colours(colours):
    painted = {Painter(colours).paint([Span("x", level=level)]) for level in (0, *COLOURS)}
    assert len(painted) == 1 + len(COLOURS)
    assert "38;" not in Painter(None).paint([Span("x", level=4, is_cursor=True)])
