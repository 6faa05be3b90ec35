"""The look of all figures of runs, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megacov.errors import DataError

DOTS_PER_INCH = 200
"""Twice the usual 100, for screens of high density."""

# Okabe and Ito's colours, which colour-blind readers can tell apart. In greyscale the markers differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, GREY, _GRID = "#222222", "#777777", "#E6E6E6"
# Any, because the type of the keys differs between versions of matplotlib.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": GREY,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Args:
        figure: what to write.
        path: file, ending in .png; its folder is made.

    Raises:
        DataError: the name ends otherwise, or the file cannot be written.
    """
    if path.suffix != ".png":
        raise DataError(f"The picture is a PNG, but its name is {path.name}: let it end in .png.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DOTS_PER_INCH, format="png")
    except OSError as error:
        raise DataError(
            f"The picture cannot be written to {path} ({error.strerror}): choose another --output."
        ) from error
