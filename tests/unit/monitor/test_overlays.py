"""Levels of tokens and their colours: order, shares, ties, what is not known, and what colour-blind readers see."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.monitor.overlays import (
    COLOURS,
    HIGHEST,
    OVERLAYS,
    SHARES,
    fixed_scale,
    is_notable,
    quantile_scale,
)

VALUES = st.lists(st.one_of(st.none(), st.floats(-10, 10), st.sampled_from([0.0, 1.0, math.nan, math.inf])))
# Vision without one kind of cone, on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
@given(values=VALUES)
def test_levels_follow_the_order_of_sizes_and_the_shares(overlay, values):
    for scale in (fixed_scale(overlay), quantile_scale(overlay, values)):
        known = sorted((abs(v), v, scale.level(v)) for v in values if v is not None and math.isfinite(v))
        levels = [level for _, value, level in known if overlay.is_signed or value >= 0]
        assert [abs(level) for level in levels] == sorted(abs(level) for level in levels)
        assert all(level * value >= 0 and abs(level) <= HIGHEST for _, value, level in known)
        assert all(level == 0 for _, value, level in known if value < 0 and not overlay.is_signed)
        if scale.kind == "quantiles":
            for level, share in enumerate(SHARES, start=1):
                assert sum(abs(each) >= level for each in levels) <= (1 - share) * len(known) + 1e-9
    assert scale.levels([None, math.nan, math.inf, -math.inf]) == [None] * 4


def test_quantiles_of_different_values_fill_every_level():
    scale = quantile_scale(OVERLAYS["covariance"], [(-1) ** i * i for i in range(1, 1001)])
    counts = {level: scale.levels((-1) ** i * i for i in range(1, 1001)).count(level) for level in range(-4, 5)}
    assert counts == {-4: 5, -3: 20, -2: 75, -1: 150, 0: 500, 1: 150, 2: 75, 3: 20, 4: 5}


def test_equal_values_stay_at_level_0_and_no_values_keep_the_fixed_scale():
    overlay = OVERLAYS["entropy"]
    assert set(quantile_scale(overlay, [0.7] * 50).levels([0.7, 0.0])) == {0}
    assert quantile_scale(overlay, [None, math.nan]) == fixed_scale(overlay)


def test_selection_is_yes_or_no_on_both_scales():
    overlay = OVERLAYS["selected"]
    assert quantile_scale(overlay, [0, 0, 1]) == fixed_scale(overlay)
    assert fixed_scale(overlay).levels([0, 1, None]) == [0, HIGHEST, None]
    assert [(band.level, band.text) for band in fixed_scale(overlay).legend()] == [
        (0, "not selected"),
        (HIGHEST, "selected"),
    ]


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
@given(values=VALUES)
def test_a_legend_has_every_level_that_a_value_can_have_with_its_bounds(overlay, values):
    for scale in (fixed_scale(overlay), quantile_scale(overlay, values)):
        bands = {band.level: band for band in scale.legend()}
        assert sorted(bands) == list(bands)
        for value in (v for v in values if v is not None and math.isfinite(v) and (overlay.is_signed or v >= 0)):
            band = bands[scale.level(value)]
            assert band.low <= abs(value) and (band.high is None or abs(value) <= band.high)


def test_a_legend_reads_as_ranges():
    assert [band.text for band in fixed_scale(OVERLAYS["entropy"]).legend()] == [
        "up to 0.05",
        "0.05 to 0.2",
        "0.2 to 0.7",
        "0.7 to 1.5",
        "above 1.5",
    ]
    assert [band.text for band in fixed_scale(OVERLAYS["mismatch"]).legend()][:5] == [
        "below -1",
        "-1 to -0.2",
        "-0.2 to -0.05",
        "-0.05 to -0.01",
        "within +-0.01",
    ]


def test_markers_and_notable_levels():
    assert [fixed_scale(OVERLAYS["mismatch"]).marker(level) for level in (None, 0, 1, -4)] == ["", "", "1", "-4"]
    assert [fixed_scale(OVERLAYS["selected"]).marker(level) for level in (None, 0, HIGHEST)] == ["", "", "*"]
    assert [level for level in (None, -4, -3, -2, 0, 2, 3, 4) if is_notable(level)] == [-4, -3, 3, 4]


def _linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _luminance(colour: str) -> float:
    return float(_linear(colour) @ [0.2126, 0.7152, 0.0722])


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.clip(xyz / [0.9505, 1.0, 1.089], 0, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_text_can_be_read_on_its_background_and_levels_darken():
    for colours in COLOURS.values():
        bright, dark = sorted((_luminance(colours.background), _luminance(colours.text)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, AA
    for sign in (1, -1):
        lightness = [_lab(_linear(COLOURS[sign * level].background))[0] for level in range(1, HIGHEST + 1)]
        assert all(a - b > 8 for a, b in itertools.pairwise(lightness))


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colour_blind_readers_tell_all_levels_apart(kind):
    seen = {
        level: _lab(np.clip(np.array(BLINDNESS[kind]) @ _linear(colours.background), 0, 1))
        for level, colours in COLOURS.items()
    }
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 10, (one, other)
